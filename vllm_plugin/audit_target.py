"""What an audit asks of an engine, and how an ``LLM`` in this process is asked.

Exact laws come from *prompt* log probabilities: a sampled text is sent back as a prompt, and one
forward of it gives the law of each of its tokens given those before. A prompt is never drafted,
so no part of speculation takes part in what its result is compared with. Prompt log probabilities
are those of the raw logits; the temperature is applied by the audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from theory.audit_events import FEWEST_TOKENS

MOST_TOKENS = 256  # of a law's head: beyond it the tail's part of a tempered law is negligible

Head = tuple[np.ndarray, np.ndarray]
"""Most probable tokens of a law and their log probabilities, in any order."""
Texts = Sequence[Sequence[int]]


class AuditError(RuntimeError):
    """An audit that cannot be made, in one sentence."""


class EngineFailure(AuditError):
    """An engine that does not answer, or no longer."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """vLLM's counters of speculation: steps that verified drafts, drafted and accepted tokens."""

    drafts: int = 0
    drafted: int = 0
    accepted: int = 0

    def since(self, earlier: Drafting) -> Drafting:
        """What was counted after ``earlier``."""
        return Drafting(
            self.drafts - earlier.drafts,
            self.drafted - earlier.drafted,
            self.accepted - earlier.accepted,
        )


class Target(Protocol):
    """An engine under audit."""

    vocabulary: int | None
    longest_text: int
    heads: int

    def tokens_of(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompts."""

    def sample(
        self, prompts: Texts, samples: int, length: int, temperature: float
    ) -> list[list[list[int]]]:
        """``samples`` continuations of ``length`` tokens of each prompt; end tokens do not end."""

    def score(self, texts: Texts, starts: Sequence[int]) -> list[list[Head]]:
        """Heads of the raw laws of each text's tokens from position ``start`` on."""

    def next_heads(self, prefixes: Texts, temperature: float) -> list[Head]:
        """Heads that the engine itself reports with one sampled token; no room for a draft."""

    def drafting(self) -> Drafting | None:
        """The counters now; None where the engine keeps none."""


class EngineTarget:
    """A vLLM ``LLM`` object in this process (its engine core may run in another)."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        config = llm.llm_engine.model_config
        self.vocabulary: int | None = int(config.get_vocab_size())
        self.longest_text = int(config.max_model_len)
        allowed = self.vocabulary if config.max_logprobs == -1 else int(config.max_logprobs)
        self.heads = min(allowed, self.vocabulary, MOST_TOKENS)
        _enough(self.heads, self.vocabulary, "start it with max_logprobs=-1")

    def tokens_of(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompts by the engine's own tokenizer."""
        tokenizer = self.llm.get_tokenizer()
        return [list(tokenizer.encode(prompt)) for prompt in prompts]

    def sample(
        self, prompts: Texts, samples: int, length: int, temperature: float
    ) -> list[list[list[int]]]:
        """See :class:`Target`."""
        outputs = self._generate(
            prompts,
            n=samples,
            max_tokens=length,
            temperature=temperature,
            ignore_eos=True,
        )
        return [[list(one.token_ids) for one in output.outputs] for output in outputs]

    def score(self, texts: Texts, starts: Sequence[int]) -> list[list[Head]]:
        """See :class:`Target`."""
        outputs = self._generate(
            texts, max_tokens=1, temperature=0.0, prompt_logprobs=self.heads, flat_logprobs=True
        )
        found = []
        for output, start in zip(outputs, starts, strict=True):
            flat = output.prompt_logprobs
            ids, logs = np.array(flat.token_ids), np.array(flat.logprobs)
            spans = zip(flat.start_indices[start:], flat.end_indices[start:], strict=True)
            found.append([most_probable(ids[a:b], logs[a:b], self.heads) for a, b in spans])
        return found

    def next_heads(self, prefixes: Texts, temperature: float) -> list[Head]:
        """See :class:`Target`."""
        outputs = self._generate(
            prefixes, max_tokens=1, temperature=temperature, logprobs=self.heads
        )
        rows = [output.outputs[0].logprobs[0] for output in outputs]
        return [
            most_probable(
                np.array(list(row)), np.array([one.logprob for one in row.values()]), self.heads
            )
            for row in rows
        ]

    def drafting(self) -> Drafting | None:
        """See :class:`Target`."""
        try:
            metrics = self.llm.get_metrics()
        except AssertionError:  # vLLM's answer with disable_log_stats
            return None
        values: dict[str, int] = {}
        for metric in metrics:
            name = metric.name.removeprefix("vllm:spec_decode_num_")
            if name in ("drafts", "draft_tokens", "accepted_tokens"):
                values[name] = values.get(name, 0) + int(metric.value)
        return Drafting(
            values.get("drafts", 0), values.get("draft_tokens", 0), values.get("accepted_tokens", 0)
        )

    def _generate(self, texts: Texts, **parameters: Any) -> Any:
        from vllm import SamplingParams

        asked = SamplingParams(detokenize=False, **parameters)
        prompts = [{"prompt_token_ids": list(text)} for text in texts]
        return self.llm.generate(prompts, asked, use_tqdm=False)


def _enough(heads: int, vocabulary: int, advice: str) -> None:
    if heads < min(FEWEST_TOKENS, vocabulary):
        raise AuditError(
            f"the engine gives {heads} log probabilities a position, but an audit needs "
            f"{FEWEST_TOKENS}: {advice}"
        )


def most_probable(ids: np.ndarray, logs: np.ndarray, heads: int) -> Head:
    """The ``heads`` most probable entries of a row that vLLM begins with the text's own token.

    That token must go where it is one too many, or what is known of a law would depend on the
    token that is tested against it.
    """
    own = ids.size - heads
    return ids[max(own, 0) :], logs[max(own, 0) :]
