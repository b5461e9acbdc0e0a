"""The same streaming chat requests for every server, and the clock around them.

A *workload* is a list of questions, each asked ``samples`` times one after another, so that what a
drafter learned from one sample can serve the next. ``concurrency`` workers take whole questions:
with one worker the order is fixed, with several only the order within a question is.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_plugin.measurement import Measurement, MeasurementError
from vllm_plugin.scrape import Counters, scrape

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionMessageParam

_REQUEST_TIMEOUT = 600.0
_SETTLE_SECONDS = 5.0
_WARM_UP = (
    "Write the words red, green, blue, red, green, blue, again and again.",
    "Say the alphabet twice.",
)


@dataclass(frozen=True)
class Question:
    """A conversation to be had: the user's side of it, turn by turn."""

    identity: str
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Workload:
    """What is asked, and how; the server's own sampling seeds are left alone."""

    questions: tuple[Question, ...]
    samples: int = 1
    concurrency: int = 1
    temperature: float = 0.7
    max_tokens: int = 256
    all_turns: bool = False

    def turns_of(self, question: Question) -> tuple[str, ...]:
        """The turns that are asked of one question: the first, or all."""
        return question.turns if self.all_turns else question.turns[:1]

    @property
    def requests(self) -> int:
        """How many requests the workload makes."""
        return self.samples * sum(len(self.turns_of(one)) for one in self.questions)


@dataclass(frozen=True)
class Answer:
    """One answer as the client saw it; times are seconds since its request was sent."""

    question: str
    category: str
    sample: int
    turn: int
    text: str
    tokens: int
    first_token_seconds: float
    last_token_seconds: float
    finish_reason: str

    @property
    def seconds_per_token(self) -> float | None:
        """Decode time per output token, after the first token; None without a second one."""
        if self.tokens < 2:
            return None
        return (self.last_token_seconds - self.first_token_seconds) / (self.tokens - 1)


async def _stream(
    client: "AsyncOpenAI",
    model: str,
    messages: "Sequence[ChatCompletionMessageParam]",
    temperature: float,
    max_tokens: int,
) -> AsyncIterator[tuple[str, str | None, int | None]]:
    """(text, finish reason, total tokens) of each chunk; the total comes with the last chunk."""
    stream = await client.chat.completions.create(
        model=model,
        messages=list(messages),
        temperature=temperature,
        max_tokens=max_tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        tokens = chunk.usage.completion_tokens if chunk.usage else None
        for choice in chunk.choices:
            yield choice.delta.content or "", choice.finish_reason, None
        if tokens is not None:
            yield "", None, tokens


async def _ask(
    client: "AsyncOpenAI",
    model: str,
    workload: Workload,
    question: Question,
    sample: int,
    on_answer: Callable[[Answer], None],
) -> list[Answer]:
    messages: list[ChatCompletionMessageParam] = []
    answers: list[Answer] = []
    for turn, words in enumerate(workload.turns_of(question)):
        messages.append({"role": "user", "content": words})
        began = time.perf_counter()
        first = last = 0.0
        pieces: list[str] = []
        reason, total = "", 0
        async for text, finish, tokens in _stream(
            client, model, messages, workload.temperature, workload.max_tokens
        ):
            if tokens is not None:
                total = tokens  # the closing chunk carries no token: it must not move the clock
                continue
            last = time.perf_counter() - began
            first = first or last
            pieces.append(text)
            reason = finish or reason
        answer = Answer(
            question.identity,
            question.category,
            sample,
            turn,
            "".join(pieces),
            total,
            first,
            last,
            reason,
        )
        messages.append({"role": "assistant", "content": answer.text})
        answers.append(answer)
        on_answer(answer)
    return answers


async def _drive(
    url: str, model: str, workload: Workload, on_answer: Callable[[Answer], None]
) -> list[Answer]:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    waiting = list(reversed(workload.questions))
    answers: list[Answer] = []

    async def work(client: AsyncOpenAI) -> None:
        while waiting:
            question = waiting.pop()
            for sample in range(workload.samples):
                answers.extend(await _ask(client, model, workload, question, sample, on_answer))

    client = AsyncOpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        max_retries=0,  # a repeated request would be counted twice by the server
        timeout=_REQUEST_TIMEOUT,
        http_client=DefaultAsyncHttpxClient(trust_env=False),
    )
    async with client, asyncio.TaskGroup() as group:
        for _ in range(workload.concurrency):
            group.create_task(work(client))
    return answers


def drive(
    url: str,
    model: str,
    workload: Workload,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Ask everything and wait for the answers.

    Raises
    ------
    MeasurementError
        When a request fails, with the server's reason.
    """
    from openai import OpenAIError

    try:
        return asyncio.run(_drive(url, model, workload, on_answer))
    except* OpenAIError as group:
        reason: BaseException = group
        while isinstance(reason, BaseExceptionGroup):
            reason = reason.exceptions[0]
        raise MeasurementError(f"a request to {url} failed: {reason}") from None


def measure(
    url: str,
    model: str,
    workload: Workload,
    method: str,
    on_answer: Callable[[Answer], None] = lambda answer: None,
    *,
    warm: bool = False,
) -> tuple[Measurement, list[Answer]]:
    """Warm the server up, ask everything, and put the client's clock beside the server's counters.

    The warm-up uses fixed sentences of its own at the workload's temperature: it pays for the first
    compilation of kernels and leaves no text of the questions in anybody's table. A server that is
    ``warm`` already goes without.
    """
    warm_up = Workload(
        questions=tuple(Question(str(i), "", (text,)) for i, text in enumerate(_WARM_UP)),
        samples=2,
        concurrency=workload.concurrency,
        temperature=workload.temperature,
        max_tokens=48,
    )
    before = scrape(url)
    if not warm:
        before = _settled(url, before, sum(one.tokens for one in drive(url, model, warm_up)))
    began, cpu_began = time.perf_counter(), time.process_time()
    answers = drive(url, model, workload, on_answer)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    tokens = sum(answer.tokens for answer in answers)
    counters = _settled(url, before, tokens) - before
    per_token = [one.seconds_per_token for one in answers]
    measurement = Measurement(
        method=method,
        tokens=tokens,
        seconds=seconds,
        client_cpu_seconds=cpu,
        counters=counters,
        seconds_per_token=tuple(value for value in per_token if value is not None),
        first_token_seconds=tuple(one.first_token_seconds for one in answers),
    )
    return measurement, answers


def _settled(url: str, before: Counters, tokens: int) -> Counters:
    """The counters once they hold ``tokens`` more than ``before``.

    vLLM hands a step's tokens out before it counts them, so an immediate look can be one step
    short. A server that still disagrees after a while has served somebody else, or miscounts.
    """
    limit = time.monotonic() + _SETTLE_SECONDS
    while True:
        now = scrape(url)
        counted = now.generation_tokens - before.generation_tokens
        if counted == tokens:
            return now
        if time.monotonic() > limit:
            raise MeasurementError(
                f"the client received {tokens} tokens but the server at {url} counted {counted}; "
                "does anybody else use it?"
            )
        time.sleep(0.05)
