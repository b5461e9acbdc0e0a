"""What a verification rule costs against vLLM's stock rejection sampler, on this machine's CPU.

    python benchmarks/rules.py [--vocabularies 32000,152064] [--rows 1,2,..] [--out out]

Stock is ``vllm.v1.sample.rejection_sampler.rejection_sample`` on the kernels of vLLM's CPU engine.
All get the same processed logits, drafts and q. Stock's dense q is built outside the clock, and the
row of its bonus token is sampled elsewhere in vLLM; our time includes the softmax of that row too,
the draw of the uniforms, and the bonus token. A row here is a drafted token; up to 8 rows are one
request. Repetitions are interleaved, ratios are medians of the ratios of neighbours. The node rules
have no stock counterpart: their time is of one node of k candidates, p given.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from vllm_plugin import stock_rule
from vllm_plugin.provenance import provenance

stock_rule.load_kernels()  # before numba comes in with the back ends

from vllm_plugin.backends import Backend, backend  # noqa: E402
from vllm_plugin.nodes import RULES, Nodes  # noqa: E402
from vllm_plugin.rules import Chains  # noqa: E402

ENTRIES = 10
DRAFTS = 8  # most drafted tokens of a request
CANDIDATES = 4
CHAIN_RULES = ("token", "block")


def chains_of(rows: int, vocabulary: int, seed: int) -> tuple[torch.Tensor, Chains]:
    """Logits (D + B, V) of D = rows drafted tokens in chains of at most DRAFTS, and the chains.

    Logits are normal with a spread that leaves p a few likely tokens; q is p's ten most probable
    tokens of another temperature, so that some drafts are accepted and some are not.
    """
    rng = np.random.default_rng(seed)
    batch, steps = -(-rows // DRAFTS), min(rows, DRAFTS)
    lengths = np.full(batch, steps)
    lengths[-1] -= batch * steps - rows
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((rows + batch, vocabulary), generator=generator)
    first = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
    of_draft = (first[:, None] + np.arange(steps)).clip(max=rows + batch - 1)
    top = logits[torch.from_numpy(of_draft)].topk(ENTRIES, dim=-1)
    law = (top.values * 0.8).softmax(-1).double()
    drawn = rng.random((batch, steps, 1)) > law.cumsum(-1).numpy()
    slots = torch.from_numpy(drawn.sum(-1, keepdims=True).clip(max=ENTRIES - 1))
    chains = Chains(
        torch.from_numpy(first),
        torch.from_numpy(lengths),
        torch.ones(batch, dtype=torch.bool),
        top.indices.gather(-1, slots)[:, :, 0].contiguous(),
        top.indices.contiguous(),
        law.contiguous(),
    )
    return logits, chains


def interleaved(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, in turns, for about so many seconds and at least 20 turns."""
    for call in calls.values():
        for _ in range(3):
            call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    while len(spent[next(iter(calls))]) < 20 or time.perf_counter() - begin < seconds:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - start)
    return spent


def against_stock(rows: int, vocabulary: int, ours: Backend, seconds: float, seed: int) -> dict:
    """Median times and ratios of the chain rules and stock on one batch."""
    logits, chains = chains_of(rows, vocabulary, seed)
    batch, steps = chains.tokens.shape
    places = torch.arange(steps)
    inside = places < chains.lengths[:, None]
    target = logits[(chains.first_rows[:, None] + places)[inside]].contiguous()
    dense = stock_rule.dense_law(chains, vocabulary)
    bonus = torch.zeros((batch, 1), dtype=torch.int32)

    def stock() -> torch.Tensor:
        return stock_rule.stock_verify(target, chains, dense, bonus)

    def of(rule: str) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            u = torch.rand((batch, steps + 1), dtype=torch.float64)
            return ours.chains[rule](logits.softmax(-1), chains, u[:, :steps], u[:, steps])

        return run

    spent = interleaved({"stock": stock} | {rule: of(rule) for rule in CHAIN_RULES}, seconds)
    base = np.array(spent["stock"])
    row: dict = {
        "vocabulary": vocabulary,
        "rows": rows,
        "requests": batch,
        "turns": len(base),
        "stock_us_per_row": float(np.median(base)) * 1e6 / rows,
    }
    for rule in CHAIN_RULES:
        times = np.array(spent[rule])
        row[f"{rule}_us_per_row"] = float(np.median(times)) * 1e6 / rows
        row[f"{rule}_of_stock"] = float(np.median(times / base))
    row["not_slower"] = all(row[f"{rule}_of_stock"] <= 1 for rule in CHAIN_RULES)
    return row


def nodes_alone(vocabulary: int, ours: Backend, seconds: float, seed: int) -> list[dict]:
    """Microseconds of one node for every node rule, p given, 64 nodes in a call."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((64, vocabulary), generator=generator)
    p = logits.softmax(-1)
    top = logits.topk(ENTRIES, dim=-1)
    order = torch.from_numpy(
        rng.permuted(np.tile(np.arange(ENTRIES), (64, 1)), axis=1)[:, :CANDIDATES]
    )
    law = (top.values * 0.8).softmax(-1).double().contiguous()
    batch = Nodes(torch.arange(64), top.indices.gather(1, order), top.indices.contiguous(), law)

    def of(rule: str) -> Callable[[], object]:
        def run() -> object:
            u = torch.rand((64, CANDIDATES + 1), dtype=torch.float64)
            return ours.decide(rule, p, batch, u[:, :CANDIDATES], u[:, CANDIDATES])

        return run

    spent = interleaved({rule: of(rule) for rule in RULES}, seconds)
    return [
        {"vocabulary": vocabulary, "rule": rule, "us_per_node": float(np.median(t)) * 1e6 / 64}
        for rule, t in spent.items()
    ]


def shown(rows: Sequence[dict], nodes: Sequence[dict]) -> list[Table]:
    """The chain rules against stock, then the node rules."""
    first = Table(title="Microseconds a drafted row, and ratio to stock", box=SIMPLE)
    for head in ("V", "rows", "stock", "token", "of stock", "block", "of stock"):
        first.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        first.add_row(
            f"{row['vocabulary']:,}",
            str(row["rows"]),
            f"{row['stock_us_per_row']:.0f}",
            f"{row['token_us_per_row']:.0f}",
            f"{row['token_of_stock']:.2f}",
            f"{row['block_us_per_row']:.0f}",
            f"{row['block_of_stock']:.2f}",
        )
    second = Table(title=f"Microseconds a node of {CANDIDATES} candidates", box=SIMPLE)
    sizes = sorted({node["vocabulary"] for node in nodes})
    second.add_column("rule")
    for size in sizes:
        second.add_column(f"V = {size:,}", justify="right")
    cost = {(node["rule"], node["vocabulary"]): node["us_per_node"] for node in nodes}
    for rule in RULES:
        second.add_row(rule, *(f"{cost[rule, size]:.1f}" for size in sizes))
    return [first, second]


def draw(path: Path, rows: Sequence[dict]) -> None:
    """Ratios to stock over the number of rows, a line for each rule and vocabulary."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for size in sorted({row["vocabulary"] for row in rows}):
        of_size = [row for row in rows if row["vocabulary"] == size]
        for rule in CHAIN_RULES:
            ratios = [row[f"{rule}_of_stock"] for row in of_size]
            axes.plot([r["rows"] for r in of_size], ratios, marker="o", label=f"{rule}, V {size:,}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="drafted rows", ylabel="time, stock = 1", ylim=(0, None))
    axes.set_xticks([row["rows"] for row in of_size], [str(row["rows"]) for row in of_size])
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def numbers(text: str) -> list[int]:
    """Comma-separated positive integers."""
    found = [int(part) for part in text.split(",")]
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of positive integers such as 1,2,4")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a rule is slower than stock somewhere."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", type=numbers, default=[32_000, 152_064])
    parser.add_argument("--rows", type=numbers, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args(arguments)
    ours = backend("cpu")
    rows = [
        against_stock(n, vocabulary, ours, options.seconds, options.seed)
        for vocabulary in options.vocabularies
        for n in options.rows
    ]
    nodes = [
        node
        for vocabulary in options.vocabularies
        for node in nodes_alone(vocabulary, ours, options.seconds, options.seed)
    ]
    for table in shown(rows, nodes):
        Console().print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {"threads": torch.get_num_threads(), "entries": ENTRIES, "drafts": DRAFTS}
    result = {"provenance": provenance() | {"settings": settings}, "rows": rows, "nodes": nodes}
    (options.out / "rules.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(options.out / "rules.png", rows)
    print(f"written: {options.out / 'rules.json'}, {options.out / 'rules.png'}")
    return 0 if all(row["not_slower"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
