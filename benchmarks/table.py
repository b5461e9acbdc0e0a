"""What the STAND table costs: microseconds a row for update and look-up in a big, warm table.

    python benchmarks/table.py [--dataset FILE.jsonl --model smollm2] [--json OUT]

A step is what the engine asks for: one ``StandTable.observe`` of draft length + 1 rows a request,
then one ``StandDrafter.draft``. The table is filled before, so that its lines are in no cache and
new contexts evict old ones. A row's cost is that of its update plus that of the look-up of one
drafted position, each the whole call, Python included, over the number of rows or positions.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from arguments import BriefParser, at_least, numbers
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from proposers import ENTRIES, DraftRequests, StandDrafter, StandTable, VerifiedRows
from vllm_plugin import spec_bench
from vllm_plugin.models import ModelError
from vllm_plugin.provenance import provenance
from vllm_plugin.server import model_folder

TARGET = 5.0  # microseconds a row, update and look-up together
VOCABULARY = 49_152
_PHRASE = 12  # mean length of text that was seen before, in tokens
_TOKENS_A_STEP = 2
_TEMPERATURE = 0.7
_WARM_UP = 200
_MEASURED_TOKENS = 200_000
_CONSOLE = Console(stderr=True)
Text = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Cost:
    """Times of one batch size; microseconds, medians over steps unless named otherwise."""

    requests: int
    steps: int
    update_per_row: float
    look_up_per_position: float
    per_row: float
    per_row_mean: float
    step: float
    step_p99: float
    positions_per_draft: float


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = BriefParser(prog="table.py", description=(__doc__ or "").splitlines()[0])
    add = made.add_argument
    add("--order", type=int, default=6, help="longest context, in tokens")
    add("--interpolation", type=float, default=1.0, help="mixture with shorter contexts")
    add("--emitted-weight", type=float, default=0.7, help="extra weight of the emitted token")
    add("--table-mib", type=int, default=256, help="memory of the table")
    add("--draft-length", type=int, default=8)
    add("--batches", type=numbers, default=[1, 8], help="requests a step, a,b,c")
    add("--steps", type=at_least(1), default=5000, help="measured steps of each batch size")
    add("--dataset", type=Path, help="text to measure on, in Spec-Bench's JSON lines")
    add("--model", default="smollm2", help="whose tokenizer reads the data set")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="OUT", help="where the result goes")
    return made


def zipf_stream(length: int, rng: np.random.Generator) -> Text:
    """Text of Zipf tokens, half of which stands in phrases copied from anywhere before."""
    rank = 1.0 / np.arange(1, VOCABULARY + 1) ** 1.05
    names = rng.permutation(VOCABULARY).astype(np.int32)
    fresh = names[np.searchsorted(np.cumsum(rank / rank.sum()), rng.random(length)) % VOCABULARY]
    text = fresh.copy()
    at = 16 * _PHRASE
    while at < length:
        n = min(int(rng.geometric(1 / _PHRASE)), at, length - at)
        begin = int(rng.integers(0, at - n + 1))
        text[at : at + n] = text[begin : begin + n]
        at += n + int(rng.geometric(1 / _PHRASE))
    return text


def dataset_stream(path: Path, model: str) -> Text:
    """All turns of a data set, one after another, as tokens of the model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder(model))
    turns = [turn for question in spec_bench.read(path) for turn in question.turns]
    return np.array(tokenizer("\n\n".join(turns), verbose=False).input_ids, np.int32)


def laws(text: Text) -> tuple[Text, NDArray[np.float32]]:
    """A plausible law of the token after each position: ids and probabilities, (n, ENTRIES).

    What really follows comes first, then what followed the same token elsewhere, so that drafts
    go on along contexts that the text has; rare tokens fill the rest.
    """
    followers: dict[int, dict[int, None]] = {}
    for last, following in pairwise(text.tolist()):
        held = followers.setdefault(last, {})
        if len(held) < ENTRIES:
            held[following] = None
    ids = np.empty((text.size, ENTRIES), np.int32)
    for i, (last, following) in enumerate(pairwise([*text.tolist(), 0])):
        rare = ((last * 31 + 4093 * e) % VOCABULARY for e in range(2 * ENTRIES))
        ids[i] = list(dict.fromkeys((following, *followers.get(last, ()), *rare)))[:ENTRIES]
    mass = 0.5 ** np.arange(1, ENTRIES + 1)
    return ids, np.broadcast_to(mass.astype(np.float32), ids.shape)


def fill(table: StandTable, rng: np.random.Generator) -> None:
    """Observe text until new contexts evict old ones."""
    while table.evictions < table.capacity // 8:
        table.observe_text(zipf_stream(table.capacity // 4, rng))


def measure(
    drafter: StandDrafter,
    text: Text,
    rows_of_text: tuple[Text, NDArray[np.float32]],
    requests: int,
    steps: int,
) -> Cost:
    """Decode ``text`` in ``requests`` places at once, timing both calls of every step."""
    table, length = drafter.table, drafter.draft_length
    rows, order = length + 1, table.order
    usable = text.size - order - rows - _TOKENS_A_STEP
    ids, probabilities = rows_of_text
    starts = order + np.linspace(0, usable, requests, endpoint=False).astype(np.int64)
    history = np.zeros((requests, order + rows), np.int32)
    ones = np.ones(requests)
    fixed = {
        "rows": np.arange(requests),
        "lengths": np.full(requests, order, np.int64),
        "budgets": np.full(requests, length, np.int64),
        "temperatures": ones * _TEMPERATURE,
        "top_k": np.zeros(requests, np.int64),
        "top_p": ones,
        "noise_keys": np.zeros(requests, np.uint64),
        "handles": np.arange(requests),
    }
    spent = np.empty((steps + _WARM_UP, 2))
    positions = np.empty(steps + _WARM_UP)
    for step in range(steps + _WARM_UP):
        at = order + (starts - order + step * _TOKENS_A_STEP) % usable
        window = at[:, None] + np.arange(-order, length)  # the context and what was drafted
        ends = np.arange(requests)[:, None] * (order + length) + order + np.arange(rows)
        last = (at[:, None] + np.arange(-1, length)).ravel()  # the last token before each row
        verified = VerifiedRows(
            tokens=text[window].ravel(),
            begins=np.repeat(np.arange(requests) * (order + length), rows),
            ends=ends.ravel(),
            ids=ids[last],
            probabilities=probabilities[last],
            emitted=text[at[:, None] + np.arange(rows)].ravel(),
            temperatures=np.full(requests * rows, _TEMPERATURE),
        )
        history[:, :order] = text[at[:, None] + np.arange(_TOKENS_A_STEP - order, _TOKENS_A_STEP)]
        wanted = DraftRequests(tokens=history, **fixed)
        begin = time.perf_counter_ns()
        drafter.observe(verified)
        middle = time.perf_counter_ns()
        drafts = drafter.draft(wanted)
        spent[step] = middle - begin, time.perf_counter_ns() - middle
        positions[step] = np.minimum(drafts.lengths + 1, length).sum()  # a miss is a look-up too
    spent, positions = spent[_WARM_UP:] / 1000, positions[_WARM_UP:]
    update = spent[:, 0] / (requests * rows)
    look_up = spent[:, 1] / positions
    whole = spent.sum(axis=1)
    return Cost(
        requests=requests,
        steps=steps,
        update_per_row=float(np.median(update)),
        look_up_per_position=float(np.median(look_up)),
        per_row=float(np.median(update + look_up)),
        per_row_mean=float(np.mean(update + look_up)),
        step=float(np.median(whole)),
        step_p99=float(np.percentile(whole, 99)),
        positions_per_draft=float(positions.mean() / requests),
    )


def shown(costs: Sequence[Cost], table: StandTable) -> Table:
    """One row a batch size."""
    made = Table(
        title=f"STAND table of {table.live:,} contexts, order {table.order}: microseconds",
        caption=f"target: at most {TARGET:g} a row for update and look-up together",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
    )
    heads = ("requests", "update/row", "look-up/token", "together", "mean", "step", "p99")
    for head in heads:
        made.add_column(head, justify="right", no_wrap=True)
    for cost in costs:
        numbers = (cost.update_per_row, cost.look_up_per_position, cost.per_row, cost.per_row_mean)
        made.add_row(
            str(cost.requests),
            *(f"{number:.2f}" for number in numbers),
            f"{cost.step:.0f}",
            f"{cost.step_p99:.0f}",
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 2 for bad input."""
    options = parser().parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    try:
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            if options.json.is_dir():
                raise ValueError(f"--json {options.json} is a folder; name a file")
        table = StandTable(
            order=options.order,
            budget_bytes=options.table_mib * 2**20,
            emitted_weight=options.emitted_weight,
        )
        drafter = StandDrafter(
            table,
            draft_length=options.draft_length,
            seed=options.seed,
            interpolation=options.interpolation,
        )
        text = dataset_stream(options.dataset, options.model) if options.dataset else None
    except (ModelError, spec_bench.DatasetError, ValueError, OSError) as error:
        print(f"table.py: {error}", file=sys.stderr)
        return 2
    with _CONSOLE.status("filling the table"):
        fill(table, rng)
    if text is None:
        text = zipf_stream(_MEASURED_TOKENS, rng)
    drafter.start(0, text)
    known = laws(text)
    costs = [measure(drafter, text, known, requests, options.steps) for requests in options.batches]
    Console().print(shown(costs, table))
    if options.json:
        result = {
            "provenance": provenance()
            | {
                "options": {
                    key: str(value) if isinstance(value, Path) else value
                    for key, value in vars(options).items()
                },
                "text_tokens": int(text.size),
                "dataset_sha256": spec_bench.checksum(options.dataset) if options.dataset else None,
                "table": {
                    "bytes": table.nbytes,
                    "contexts": table.live,
                    "capacity": table.capacity,
                    "evictions": table.evictions,
                },
            },
            "target_microseconds_per_row": TARGET,
            "results": [asdict(cost) | {"reached": cost.per_row <= TARGET} for cost in costs],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
