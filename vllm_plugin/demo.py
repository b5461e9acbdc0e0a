"""``specproof demo``: the same chat with and without drafts, side by side, on a real server.

The questions are chosen for what drafts live on: a summary and a code change repeat their prompt,
chat and arithmetic do not. Each is asked several times, because that is where the STAND table
learns: the second answer to a question is drafted from the first.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vllm_plugin.load import Answer, Question, Workload, measure
from vllm_plugin.measurement import Measurement, speed_ratios, table
from vllm_plugin.server import ServerOptions, model_folder, plugin_speculation, vllm_server

DRAFT_TOKENS = 8

QUESTIONS = (
    Question(
        "chat",
        "chat",
        ("I have a free Sunday in a small town by the sea. What could I do with it?",),
    ),
    Question(
        "summary",
        "summary",
        (
            "Summarise this in three sentences.\n\n"
            "The harbour of Aldersund froze over on the fourth of January, eleven days earlier "
            "than in any winter since the records began in 1871. The ferry to the islands stopped "
            "the same evening. For two weeks the four hundred people on the islands were supplied "
            "by helicopter, twice a day when the wind allowed it, and the school moved its lessons "
            "into the fish hall, the only heated building that was large enough. On the "
            "nineteenth an icebreaker from the mainland opened a channel, but the ferry company "
            "refused to use it until the ice at the piers had been measured. The first ferry "
            "arrived on the twenty-third with mail, fresh fruit and a brass band.",
        ),
    ),
    Question(
        "code",
        "code",
        (
            "Rename the variable `l` to `numbers` and add a docstring. Show the whole function.\n\n"
            "```python\n"
            "def stats(l):\n"
            "    total = 0\n"
            "    for x in l:\n"
            "        total = total + x\n"
            "    mean = total / len(l)\n"
            "    squares = 0\n"
            "    for x in l:\n"
            "        squares = squares + (x - mean) ** 2\n"
            "    variance = squares / len(l)\n"
            "    return total, mean, variance\n"
            "```",
        ),
    ),
    Question(
        "maths",
        "maths",
        (
            "A baker sells 36 rolls in the morning and 3 times as many in the afternoon. Each roll "
            "costs 2 coins. How many coins does the baker earn? Work it out step by step.",
        ),
    ),
)


@dataclass(frozen=True)
class Side:
    """One of the two servers: what it is called and what it drafts with."""

    name: str
    speculative_config: dict[str, Any] | None


SIDES = (Side("plain", None), Side("specproof", plugin_speculation(DRAFT_TOKENS)))


def run(
    *,
    model: str = "smollm2",
    temperature: float = 0.7,
    samples: int = 4,
    max_tokens: int = 160,
    as_json: bool = False,
    sides: Sequence[Side] = SIDES,
) -> None:
    """Serve, ask, show. Progress goes to standard error, the result to standard output.

    Raises
    ------
    ModelError, ServerError, MeasurementError
        Each with one sentence, or the tail of the server's log.
    """
    stage = Console(stderr=True)
    folder = str(model_folder(model))
    workload = Workload(QUESTIONS, samples=samples, temperature=temperature, max_tokens=max_tokens)
    rounds: dict[str, list[Measurement]] = {}
    answers: dict[str, list[Answer]] = {}
    for side in sides:
        measured, answers[side.name] = _serve(side, folder, workload, stage)
        rounds[side.name] = [measured]
    plain, ours = (rounds[side.name] for side in sides)
    if as_json:
        document = {
            "results": [run.as_json() for runs in rounds.values() for run in runs],
            "speed_ratio": speed_ratios(ours, plain)[0],
            "answers": {
                name: [{"question": one.question, "text": one.text} for one in given]
                for name, given in answers.items()
            },
        }
        print(json.dumps(document, indent=1))
        return
    out = Console()
    _show_answers(out, answers)
    title = f"{len(QUESTIONS)} questions, {samples} answers each, T = {temperature:g}"
    out.print(table(rounds, sides[0].name, title))
    if temperature > 0:
        out.print(
            "The texts differ because both sides roll their own dice: same law, other dice. "
            "`make test` proves that the law is the same."
        )
    else:
        out.print("At T = 0 both sides follow the same argmax; `make test` checks it in float32.")


def _serve(
    side: Side, folder: str, workload: Workload, stage: Console
) -> tuple[Measurement, list[Answer]]:
    """One server from start to end, with a progress bar over its answers."""
    options = ServerOptions(
        model=folder,
        speculative_config=side.speculative_config,
        max_num_seqs=workload.concurrency,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with vllm_server(options, name=f"vllm serve ({side.name})", console=stage) as server:
        stage.print(f"{side.name}: server up after {server.start_seconds:.0f} s", highlight=False)
        with Progress(*columns, console=stage) as progress:
            bar = progress.add_task(f"{side.name}: answers", total=workload.requests)
            return measure(
                server.url,
                options.served_name,
                workload,
                side.name,
                lambda answer: progress.advance(bar),
            )


def _show_answers(out: Console, answers: dict[str, list[Answer]]) -> None:
    """The last answer of each side to each question: the one drafted with the most memory."""
    for question in QUESTIONS:
        out.rule(f"[bold]{escape(question.turns[0].splitlines()[0])}")
        for name, given in answers.items():
            text = [one.text for one in given if one.question == question.identity][-1]
            out.print(f"[bold]{name}:[/bold] {escape(text.strip())}\n", highlight=False)
