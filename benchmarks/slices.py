"""One slice of traffic: its questions, and its speed while the wanted number is in flight.

At the end of a slice fewer and fewer requests are in flight, and at its start all prompts are
computed at once; neither is the concurrency that was asked for. So the clock runs from the moment
at which the first C requests all have their first token to the moment at which, with no question
left, the first of the C workers stops. Of an answer that lies across an edge, its tokens count as
if they came evenly between its first and its last: only 2 C answers are concerned.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_plugin.load import Answer, Question, Workload, measure
from vllm_plugin.measurement import Measurement, MeasurementError

_SPACES = ("\u0120", "\u2581")  # how byte-level and SentencePiece tokens write a leading blank
_STRETCH = 50  # tokens of repetition, then as many of noise
_MOTIF = 5
_LONGEST_WORD = 12


class VocabularyError(ValueError):
    """A model whose tokenizer offers no words to make prompts of, in one sentence."""


@dataclass(frozen=True)
class Slice:
    """One method's turn: everything measured, and what fell into the window of C in flight."""

    measured: Measurement
    tokens: float
    seconds: float

    @property
    def speed(self) -> float:
        """Output tokens per second of the window, prefills of new requests included."""
        return self.tokens / self.seconds

    def as_json(self) -> dict[str, Any]:
        """The window, and all numbers of the whole slice."""
        return {
            "window": {"tokens": self.tokens, "seconds": self.seconds, "speed": self.speed},
            **self.measured.as_json(),
        }


def requests_of(concurrency: int, max_tokens: int, slice_tokens: int, waves: int) -> int:
    """Requests in a slice: enough for its tokens, and ``waves`` for each one in flight."""
    return max(waves * concurrency, -(-slice_tokens // max_tokens))


def run_slice(url: str, served: str, workload: Workload, method: str, *, warm: bool) -> Slice:
    """Ask a server everything; the window is that of the workload's concurrency.

    Raises
    ------
    MeasurementError
        When a request fails, or the answers are so short that there is no window.
    """
    finished: list[tuple[float, Answer]] = []
    measured, _ = measure(
        url,
        served,
        workload,
        method,
        lambda answer: finished.append((time.perf_counter(), answer)),
        warm=warm,
    )
    tokens, seconds = window(finished, workload.concurrency)
    return Slice(measured, tokens, seconds)


def window(finished: Sequence[tuple[float, Answer]], concurrency: int) -> tuple[float, float]:
    """Tokens and seconds while ``concurrency`` answers of one turn each were in flight.

    Parameters
    ----------
    finished : (clock at the answer's last token, answer), at least ``concurrency`` of them.

    Raises
    ------
    MeasurementError
        When that was never so.
    """
    # (sent, first token, last token, tokens), the clock of each
    spans = [
        (end - one.last_token_seconds, end - one.last_token_seconds + one.first_token_seconds,
         end, one.tokens)
        for end, one in finished
    ]  # fmt: skip
    first = sorted(spans)[:concurrency]
    begin = max(span[1] for span in first)
    ends = sorted(span[2] for span in spans)
    end = ends[len(ends) - concurrency]
    if end <= begin:
        raise MeasurementError(
            f"a slice of {len(spans)} requests was over before {concurrency} were in flight; "
            "raise --waves or --max-tokens"
        )
    return sum(_tokens_within(*span[1:], begin, end) for span in spans), end - begin


def _tokens_within(first: float, last: float, tokens: int, begin: float, end: float) -> float:
    """Tokens in (begin, end] of an answer whose first token came at ``first``, the others evenly
    over (first, last]."""
    overlap = min(last, end) - max(first, begin)
    share = overlap / (last - first) if last > first else float(begin < last <= end)
    return float(tokens >= 1 and begin < first <= end) + max(0.0, share) * max(0, tokens - 1)


def words_of(folder: Path) -> list[str]:
    """Plain words that are one token each behind a blank, of the model's own vocabulary.

    Raises
    ------
    VocabularyError
        When the folder has no tokenizer.json with such words.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    vocabulary = sorted(Tokenizer.from_file(str(path)).get_vocab()) if path.is_file() else []
    words = [
        token[1:]
        for token in vocabulary
        if token.startswith(_SPACES)
        and token[1:].isascii() and token[1:].isalpha() and len(token) <= _LONGEST_WORD
    ]  # fmt: skip
    if len(words) < 2 * _STRETCH:
        raise VocabularyError(
            f"--adversarial makes prompts of the model's own words, but {path} offers "
            f"{len(words)} of them; use --dataset."
        )
    return words


def adversarial(words: Sequence[str], seed: int) -> Iterator[Question]:
    """Prompts without end, never the same: noise, and repetition and noise in turns of 50 tokens.

    Repetition is a motif of five words ten times over, a new one in each turn; it comes first and
    last, so that a drafter has reason to speak up.
    """
    dice = random.Random(seed)
    number = 0
    while True:
        noise = dice.choices(words, k=2 * _STRETCH)
        yield Question(f"noise-{number}", "noise", (" ".join(noise),))
        first, last = (dice.choices(words, k=_MOTIF) * (_STRETCH // _MOTIF) for _ in range(2))
        turns = [*first, *dice.choices(words, k=_STRETCH), *last]
        yield Question(f"turns-{number}", "turns", (" ".join(turns),))
        number += 1
