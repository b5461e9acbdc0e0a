"""A vLLM server that trajectories are recorded from, through its OpenAI-compatible API.

Needs what vLLM adds to that API: prompts as token ids, ``return_token_ids``,
``return_tokens_as_token_ids`` and ``/tokenize``. A server without them, or whose log probabilities
are not those of the raw law, is refused with a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from theory.traces import Floats32, Ints32, Sampling
from vllm_plugin.fingerprint import PROBES, fingerprint

MOST_HEADS = 256
"""Log probabilities a token that are asked for; those beyond the kept ones tell of the tail."""
FEWEST_HEADS = 20
_GRANTS = (MOST_HEADS, 128, 64, 32, FEWEST_HEADS)
_TIMEOUT = httpx.Timeout(60.0, read=3600.0)  # an answer comes whole, when it is finished
_IMPOSSIBLE = -9998.0  # vLLM writes -9999 for a log probability of -inf
_PROBE = [1, 2, 3]
_LARGEST_VOCABULARY = 1 << 22


class RecordError(RuntimeError):
    """A recording that cannot be made, in one sentence."""


class ServerLost(RecordError):
    """A server that does not answer, or no longer."""


@dataclass(frozen=True, slots=True)
class Head:
    """The law of each token of one answer at temperature 1, and the tokens.

    Shapes: tokens, own (N,), ids, logs (N, H), most probable first, padded with -1 and -inf; own
    are the tokens' own log probabilities.
    """

    tokens: Ints32
    ids: Ints32
    logs: Floats32
    own: Floats32


class RecordingServer:
    """One server; `open` finds out what it serves and grants."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.client = client
        self.model = self.root = self.version = self.tokenizer = ""
        self.longest_text = self.vocabulary = self.heads = 0

    @classmethod
    async def open(cls, url: str) -> RecordingServer:
        """Connect, and refuse what cannot be recorded from.

        Raises
        ------
        RecordError
            One sentence that says what the server lacks and how to start one that has it.
        ServerLost
            When nobody answers.
        """
        base = url.rstrip("/").removesuffix("/v1")
        try:
            client = httpx.AsyncClient(base_url=base, timeout=_TIMEOUT, trust_env=False)
        except (httpx.InvalidURL, ValueError) as error:
            raise RecordError(f"--url {url} is no address: {error}") from None
        server = cls(base, client)
        try:
            await server._examine()
        except BaseException:
            await client.aclose()
            raise
        return server

    async def close(self) -> None:
        """End the connections, and with them the requests in flight."""
        await self.client.aclose()

    async def prompt_of(self, words: str) -> list[int]:
        """Token ids of a question as the server's chat template puts it."""
        return await self._tokens(messages=[{"role": "user", "content": words}])

    async def answer(self, prompt: Sequence[int], sampling: Sampling, max_tokens: int) -> Head:
        """One answer, with the head of the law of each of its tokens."""
        choice = await self._complete(
            prompt,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            max_tokens=max_tokens,
            logprobs=self.heads,
        )
        return self._head(choice)

    async def _examine(self) -> None:
        listed = (await self._get("/v1/models")).get("data") or []
        if not listed:
            raise RecordError(f"{self.url} serves no model")
        entry = listed[0]
        self.model = str(entry.get("id"))
        self.root = str(entry.get("root") or self.model)
        self.longest_text = int(entry.get("max_model_len") or 0)
        probes = [await self._tokens(prompt=text, add_special_tokens=False) for text in PROBES]
        self.tokenizer = fingerprint(probes)
        self.vocabulary = await self._vocabulary()
        self.heads = await self._most_heads()
        await self._check_laws()
        try:
            self.version = str((await self._get("/version")).get("version", ""))
        except RecordError:
            self.version = ""

    async def _vocabulary(self) -> int:
        """How many tokens the law is over: the API names it nowhere, but refuses ids beyond it."""
        low, high = 1, _LARGEST_VOCABULARY
        while low < high:
            middle = (low + high + 1) // 2
            answer = await self._post(
                _PROBE, temperature=0.0, max_tokens=1, allowed_token_ids=[middle - 1]
            )
            if answer.is_success:
                low = middle
            elif "vocab" in _reason(answer):
                high = middle - 1
            else:
                raise RecordError(f"{self.url} refused a request: {_reason(answer)}")
        if low < 2 or high == _LARGEST_VOCABULARY:
            raise RecordError(
                f"{self.url} does not check allowed_token_ids, so the size of its vocabulary "
                "cannot be found: record from a vLLM server"
            )
        return low

    async def _most_heads(self) -> int:
        """The largest number of log probabilities a position that the server grants."""
        refusal = ""
        for grant in _GRANTS:
            heads = min(grant, self.vocabulary)
            answer = await self._post(_PROBE, temperature=0.0, max_tokens=1, logprobs=heads)
            if answer.is_success:
                return heads
            refusal = _reason(answer)
            if "logprobs" not in refusal:
                break
        raise RecordError(
            f"{self.url} does not give {FEWEST_HEADS} log probabilities a token ({refusal}): "
            f"start it with --max-logprobs {MOST_HEADS}"
        )

    async def _check_laws(self) -> None:
        """Refuse log probabilities after temperature, and values that are none."""
        wide, narrow = [
            self._head(
                await self._complete(_PROBE, temperature=t, max_tokens=1, logprobs=self.heads)
            )
            for t in (1.0, 0.5)
        ]
        advice = "start it with --logprobs-mode raw_logprobs, vLLM's default"
        if float(np.exp(wide.logs[0].astype(np.float64)).sum()) > 1.01:
            raise RecordError(f"{self.url} gives logits instead of log probabilities: {advice}")
        # At half the temperature the differences of processed values double; raw ones stay.
        spans = [float(np.ptp(head.logs[0][head.ids[0] >= 0])) for head in (wide, narrow)]
        if spans[1] > 1.5 * spans[0] + 0.1:
            raise RecordError(
                f"{self.url} gives log probabilities after temperature, from which the law itself "
                f"does not follow: {advice}"
            )

    def _head(self, choice: Mapping[str, Any]) -> Head:
        try:
            tokens = [int(token) for token in choice["token_ids"]]
            given = choice["logprobs"]
            own = [float(value) for value in given["token_logprobs"]]
            rows = [
                sorted(
                    (
                        (float(log), int(name.removeprefix("token_id:")))
                        for name, log in row.items()
                    ),
                    reverse=True,
                )[: self.heads]
                for row in given["top_logprobs"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise RecordError(
                f"{self.url} returns no token ids, or no log probabilities by token id "
                "(return_token_ids, return_tokens_as_token_ids): record from a vLLM server of "
                "version 0.10.2 or later"
            ) from None
        if not tokens or not len(tokens) == len(own) == len(rows):
            raise RecordError(
                f"{self.url} gave {len(rows)} laws for an answer of {len(tokens)} tokens"
            )
        ids = np.full((len(rows), self.heads), -1, np.int32)
        logs = np.full((len(rows), self.heads), -np.inf, np.float32)
        for place, row in enumerate(rows):
            possible = [(log, token) for log, token in row if log > _IMPOSSIBLE]
            ids[place, : len(possible)] = [token for _, token in possible]
            logs[place, : len(possible)] = [log for log, _ in possible]
        return Head(np.array(tokens, np.int32), ids, logs, np.array(own, np.float32))

    async def _tokens(self, **body: Any) -> list[int]:
        answer = await self._send("/tokenize", {"model": self.model, **body})
        try:
            answer.raise_for_status()
            return [int(token) for token in answer.json()["tokens"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            raise RecordError(
                f"{self.url} does not tokenize a chat ({_reason(answer)}): record from a vLLM "
                "server whose model has a chat template"
            ) from None

    async def _get(self, path: str) -> dict[str, Any]:
        try:
            answer = await self.client.get(path)
            answer.raise_for_status()
            return dict(answer.json())
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError) as error:
            raise ServerLost(
                f"no OpenAI-compatible server at {self.url}: {error or type(error).__name__}"
            ) from None

    async def _complete(self, prompt: Sequence[int], **parameters: Any) -> dict[str, Any]:
        answer = await self._post(prompt, **parameters)
        if not answer.is_success:
            raise RecordError(f"{self.url} refused a request: {_reason(answer)}")
        try:
            (choice,) = answer.json()["choices"]
            return dict(choice)
        except (ValueError, KeyError, TypeError):
            raise RecordError(f"{self.url} answered something else than a completion") from None

    async def _post(self, prompt: Sequence[int], **parameters: Any) -> httpx.Response:
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # Not what the model's generation_config.json would put in their place:
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            **parameters,
        }
        return await self._send("/v1/completions", body)

    async def _send(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        try:
            answer = await self.client.post(path, json=body)
        except httpx.HTTPError as error:
            raise ServerLost(
                f"the connection to {self.url} broke: {error or type(error).__name__}"
            ) from None
        if answer.is_server_error and not re.search("logprobs|vocab", _reason(answer)):
            raise ServerLost(f"{self.url} failed: {_reason(answer)}")
        return answer


def _sorted(row: Mapping[str, float]) -> list[tuple[float, int]]:
    """(log probability, token), most probable first.

    vLLM begins a row with the emitted token, which is one entry more than asked for where it is
    not among the most probable; sorted, and cut to the number asked for, it is gone.
    """
    found = [(float(log), int(name.removeprefix("token_id:"))) for name, log in row.items()]
    return sorted(found, key=lambda one: (-one[0], one[1]))


def _reason(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        error = body.get("error", body)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return f"status {answer.status_code}"
