"""Recording: every question asked of a server, its answers kept with the laws they came from.

The answers to one question are asked for one after another, so that what a drafter learned from
one can serve the next; with ``concurrency`` above 1 several questions are in flight. A finished
question goes to the journal (:mod:`vllm_plugin.record_journal`) at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
import numpy as np

from theory.refused import RefusedRows
from theory.traces import Sampling, Trace, tail_log_weights
from vllm_plugin.load import Question
from vllm_plugin.record_journal import Journal
from vllm_plugin.record_server import Head, RecordError, RecordingServer, ServerLost
from vllm_plugin.row_log import RowReader
from vllm_plugin.scrape import Counters, ScrapeError, scrape

ENTRIES = 64
"""Entries of each law that are kept."""
_SETTLE_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """What is asked, and how; `settings` are what a resumed recording must have in common."""

    questions: tuple[Question, ...]
    samples: int
    sampling: Sampling
    max_tokens: int
    concurrency: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


def settings_of(plan: Plan, server: RecordingServer) -> dict[str, Any]:
    """What may not change between two sittings of one recording."""
    return {
        **plan.settings,
        "model": server.root,
        "tokenizer": server.tokenizer,
        "vocabulary": server.vocabulary,
        "log_probabilities": server.heads,
        "questions": [one.identity for one in plan.questions],
        "samples": plan.samples,
        **asdict(plan.sampling),
        "max_tokens": plan.max_tokens,
    }


async def prompts_of(plan: Plan, server: RecordingServer) -> list[list[int]]:
    """The token ids of every question's first turn.

    Raises
    ------
    RecordError
        When a prompt leaves no room for an answer of `max_tokens`: the drafts that an engine has
        room for would then not be those that a replay computes from `max_tokens`.
    """
    prompts = []
    for question in plan.questions:
        prompt = await server.prompt_of(question.turns[0])
        if server.longest_text and len(prompt) + plan.max_tokens > server.longest_text:
            raise RecordError(
                f"question {question.identity} has {len(prompt)} tokens and the server's longest "
                f"text {server.longest_text}, which leaves no room for --max-tokens "
                f"{plan.max_tokens}: raise --max-model-len, or lower --max-tokens"
            )
        prompts.append(prompt)
    return prompts


async def record(
    plan: Plan,
    server: RecordingServer,
    journal: Journal,
    prompts: Sequence[Sequence[int]],
    sitting: int,
    on_answer: Callable[[int], None] = lambda tokens: None,
    rows: RowReader | None = None,
) -> None:
    """Ask every question that the journal lacks; `on_answer` is told the tokens of each answer.

    `rows` tells of the rows behind refused drafts, where the server is one of ours that logs them.

    Raises
    ------
    ServerLost, RecordError
        When the server dies or refuses; what is finished by then is in the journal.
    """
    done = journal.finished()
    waiting = [number for number in range(len(prompts)) if number not in done]
    waiting.reverse()
    meter = Meter(server.url)
    await meter.start()

    async def work() -> None:
        while waiting:
            number = waiting.pop()
            heads: list[Head] = []
            for _ in range(plan.samples):
                heads.append(await server.answer(prompts[number], plan.sampling, plan.max_tokens))
                on_answer(len(heads[-1].tokens))
            question = plan.questions[number]
            refused = None if rows is None else _refused(rows, question, prompts[number], heads)
            trace = _trace(plan, server, question, prompts[number], heads, refused)
            counted = None
            try:
                counted = await meter.since_last(len(trace))
            finally:  # another question's failure cancels the look at the counters, not the answers
                trace.provenance.update(
                    sitting=sitting, counters=None if counted is None else asdict(counted)
                )
                journal.keep(number, trace)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(plan.concurrency):
                group.create_task(work())
    except* RecordError as errors:
        raise _first(errors) from None
    except* OSError as errors:
        raise RecordError(f"{journal.folder} cannot be written: {_first(errors)}") from None


class Meter:
    """The server's counters from one finished question to the next.

    Their sum over all questions is exact when the sitting is not interrupted, or asks one question
    at a time; None where the server shows no counters.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.base: Counters | None = None
        self.last: Counters | None = None
        self.tokens = 0

    async def start(self) -> None:
        """Take the first reading."""
        self.base = self.last = await self._read()

    async def since_last(self, tokens: int) -> Counters | None:
        """The increments since the last reading, once they hold so many more tokens.

        vLLM hands a step's tokens out before it counts them, so the first look can be a step short.
        """
        self.tokens += tokens
        limit = time.monotonic() + _SETTLE_SECONDS
        while self.last is not None and self.base is not None:
            now = await self._read()
            if now is None:
                return None
            counted = now.generation_tokens - self.base.generation_tokens
            if counted >= self.tokens or time.monotonic() > limit:
                found, self.last = now - self.last, now
                return found
            await asyncio.sleep(0.02)
        return None

    async def _read(self) -> Counters | None:
        try:
            return await asyncio.to_thread(scrape, self.url)
        except (ScrapeError, httpx.HTTPError):
            return None


def _trace(
    plan: Plan,
    server: RecordingServer,
    question: Question,
    prompt: Sequence[int],
    heads: Sequence[Head],
    refused: RefusedRows | None,
) -> Trace:
    """The answers to one question as a trace."""
    entries = min(ENTRIES, server.heads)
    sizes = [len(head.tokens) for head in heads]
    logs = np.concatenate([head.logs for head in heads])
    tails = None
    if server.heads > entries:
        tails = tail_log_weights(logs.astype(np.float64), entries, plan.sampling, server.vocabulary)
    return Trace(
        vocabulary=server.vocabulary,
        sampling=plan.sampling,
        max_tokens=plan.max_tokens,
        prompt_tokens=np.array(prompt, np.int32),
        prompt_begins=np.array([0, len(prompt)], np.int64),
        categories=np.array([question.category]),
        questions=np.array([question.identity]),
        answer_prompts=np.zeros(len(heads), np.int64),
        answer_begins=np.cumsum([0, *sizes]).astype(np.int64),
        tokens=np.concatenate([head.tokens for head in heads]),
        ids=np.concatenate([head.ids[:, :entries] for head in heads]),
        log_masses=np.minimum(logs[:, :entries], 0),
        tail_log_weights=tails,
        refused=refused,
        emitted_log_masses=np.minimum(np.concatenate([head.own for head in heads]), 0),
        tokenizer=server.tokenizer,
    )


def _refused(
    rows: RowReader, question: Question, prompt: Sequence[int], heads: Sequence[Head]
) -> RefusedRows | None:
    """The rows behind refused drafts of a question's answers; None from a drafter without rows."""
    found = rows.take(np.array(prompt, np.int32), [head.tokens for head in heads])
    if found is None and rows.steps:
        raise RecordError(
            f"the engine's log of rows does not hold the answers to question {question.identity}: "
            "this is a fault of specproof, please report it"
        )
    return found


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    """The one to tell of: a lost server explains the others."""
    found: list[BaseException] = []
    waiting: list[BaseException] = [errors]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseExceptionGroup):
            waiting.extend(one.exceptions)
        else:
            found.append(one)
    return next((one for one in found if isinstance(one, ServerLost)), found[0])
