"""A vLLM server under audit, asked through its OpenAI-compatible completions API."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from theory.audit_events import FEWEST_TOKENS
from vllm_plugin.audit_target import (
    AuditError,
    Drafting,
    EngineFailure,
    Head,
    Texts,
    most_probable,
)
from vllm_plugin.scrape import ScrapeError, scrape

_HEADS = (128, 64, 20)  # log probabilities a position: asked for in this order
_TIMEOUT = 600.0


class ServerTarget:
    """A vLLM server, through its OpenAI-compatible completions API.

    Needs what vLLM adds to that API: prompts as token ids, ``return_token_ids``, ``ignore_eos`` and
    ``prompt_logprobs``; a server without them is refused with a sentence.
    """

    def __init__(self, url: str, model: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.client = httpx.Client(base_url=self.url, timeout=_TIMEOUT, trust_env=False)
        listed = self._get("/v1/models").get("data") or []
        names = [str(one["id"]) for one in listed]
        if model is not None and model not in names:
            raise AuditError(f"{self.url} serves {', '.join(names) or 'no model'}, not {model}")
        if not names:
            raise AuditError(f"{self.url} serves no model")
        self.model = model or names[0]
        entry = listed[names.index(self.model)]
        self.longest_text = int(entry.get("max_model_len") or 2048)
        self.vocabulary: int | None = None
        self.heads = self._most_heads()

    def close(self) -> None:
        """End the connections."""
        self.client.close()

    def tokens_of(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompts, as the server itself read them."""
        choices = self._complete(list(prompts), max_tokens=1, temperature=0.0)
        found = [choice.get("prompt_token_ids") for choice in choices]
        if len(found) != len(prompts) or not all(found):
            raise AuditError(
                f"{self.url} does not return token ids (return_token_ids), so texts cannot be "
                "compared with laws: audit a vLLM server of version 0.10.2 or later"
            )
        return [list(ids) for ids in found if ids]

    def sample(
        self, prompts: Texts, samples: int, length: int, temperature: float
    ) -> list[list[list[int]]]:
        """See :class:`vllm_plugin.audit_target.Target`."""
        choices = self._complete(
            [list(p) for p in prompts],
            n=samples,
            max_tokens=length,
            temperature=temperature,
            ignore_eos=True,
        )
        texts = [list(choice["token_ids"]) for choice in choices]
        if any(len(text) != length for text in texts):
            raise AuditError(
                f"{self.url} ended some answers early in spite of ignore_eos; what is left would "
                "be a biased sample, so nothing can be decided"
            )
        return [texts[i : i + samples] for i in range(0, len(texts), samples)]

    def score(self, texts: Texts, starts: Sequence[int]) -> list[list[Head]]:
        """See :class:`vllm_plugin.audit_target.Target`."""
        choices = self._complete(
            [list(text) for text in texts],
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=self.heads,
        )
        found = []
        for choice, start in zip(choices, starts, strict=True):
            rows = choice.get("prompt_logprobs")
            if not rows:
                raise AuditError(f"{self.url} returned no prompt_logprobs: no law to compare with")
            found.append([most_probable(*_row(row), self.heads) for row in rows[start:]])
        return found

    def next_heads(self, prefixes: Texts, temperature: float) -> list[Head]:
        """See :class:`vllm_plugin.audit_target.Target`."""
        choices = self._complete(
            [list(prefix) for prefix in prefixes],
            max_tokens=1,
            temperature=temperature,
            logprobs=self.heads,
            return_tokens_as_token_ids=True,
        )
        found = []
        for choice in choices:
            try:
                row = choice["logprobs"]["top_logprobs"][0]
                ids = np.array([int(name.removeprefix("token_id:")) for name in row])
            except (KeyError, IndexError, TypeError, ValueError):
                raise AuditError(f"{self.url} returned no logprobs by token id") from None
            found.append(most_probable(ids, np.array(list(row.values()), np.float64), self.heads))
        return found

    def drafting(self) -> Drafting | None:
        """See :class:`vllm_plugin.audit_target.Target`."""
        try:
            counters = scrape(self.url)
        except (ScrapeError, httpx.HTTPError):
            return None
        return Drafting(counters.drafts, counters.draft_tokens, counters.accepted_tokens)

    def _most_heads(self) -> int:
        """The largest number of log probabilities a position that the server grants."""
        refusal = ""
        for heads in _HEADS:
            answer = self._post(
                [[1, 2, 3, 4]], max_tokens=1, temperature=0.0, prompt_logprobs=heads
            )
            if answer.is_success:
                return heads
            refusal = _reason(answer)
            if not re.search(r"logprobs", refusal):
                break
        raise AuditError(
            f"{self.url} does not give {FEWEST_TOKENS} or more prompt_logprobs, so the law of a "
            f"token cannot be known ({refusal}); start it with --max-logprobs 128"
        )

    def _get(self, path: str) -> dict[str, Any]:
        try:
            answer = self.client.get(path)
            answer.raise_for_status()
            return dict(answer.json())
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise EngineFailure(
                f"no OpenAI-compatible server at {self.url}: {error or type(error).__name__}"
            ) from None

    def _post(self, prompts: Sequence[Any], **parameters: Any) -> httpx.Response:
        body = {
            "model": self.model,
            "prompt": list(prompts),
            "return_token_ids": True,
            # Not what the model's generation_config.json would put in their place:
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            **parameters,
        }
        try:
            return self.client.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            raise EngineFailure(
                f"the connection to {self.url} broke: {error or type(error).__name__}"
            ) from None

    def _complete(self, prompts: Sequence[Any], **parameters: Any) -> list[dict[str, Any]]:
        answer = self._post(prompts, **parameters)
        if not answer.is_success:
            raise AuditError(f"{self.url} refused a request: {_reason(answer)}")
        try:
            choices = sorted(answer.json()["choices"], key=lambda choice: int(choice["index"]))
        except (ValueError, KeyError, TypeError):
            raise AuditError(f"{self.url} answered something else than completions") from None
        if len(choices) != len(prompts) * parameters.get("n", 1):
            raise AuditError(
                f"{self.url} answered {len(prompts)} prompts with {len(choices)} texts: it does "
                "not take several prompts, or n, in one request"
            )
        if not all(choice.get("token_ids") for choice in choices):
            raise AuditError(
                f"{self.url} does not return token ids (return_token_ids), so texts cannot be "
                "compared with laws: audit a vLLM server of version 0.10.2 or later"
            )
        return choices


def _row(row: dict[str, dict[str, Any]]) -> Head:
    ids = np.array([int(name) for name in row])
    return ids, np.array([float(one["logprob"]) for one in row.values()])


def _reason(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        error = body.get("error", body)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        return f"status {answer.status_code}"
