"""Several paths in one forward, proved at length: greedy texts, and the law of sampled ones.

    python benchmarks/paths_proof.py greedy [--paths 2,4,8] [--depths 4,8] [--blocks 32,128]
    python benchmarks/paths_proof.py law [--samples 81920] [--temperatures 0.7,1]

``greedy``: a real model in float32, eight requests at once, texts of ``--tokens`` tokens, once with
room for all and once in a cache that is too small (preemption, lists that are cut), with a table's
drafts and with a script that knows the answer; then a second turn on the prefix cache. ``law``: the
joint law of three drafted positions for every way of drafting with every rule that is lossless for
it; two mistakes must be found out. What ``make test`` does in a small version. Exits with 1 on any
difference.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' engines and scripts

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
LIMIT = 1024
SMALL_CACHE = 60  # blocks of 32 tokens, and as many tokens in others


def listed(text: str, kind: Any) -> list[Any]:
    """The values of a,b,c."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 2,4") from None


def finish(title: str, columns: list[str], rows: list[list[str]], wrong: int) -> None:
    """Print the table and leave."""
    table = Table(*columns, title=title, box=SIMPLE)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    print(f"{wrong} of {len(rows)} rows differ from what they must be")
    raise typer.Exit(1 if wrong else 0)


@app.command()
def greedy(
    paths: str = "2,4,8",
    depths: str = "4,8",
    blocks: str = "32,128",
    tokens: int = 400,
    small: str = "no,yes",
) -> None:
    """Texts at temperature 0 against plain decoding, token for token."""
    from tests.engine import test_paths as small_version
    from vllm_plugin import models

    model = models.build("smollm2")
    prompts = small_version.chats(model)
    with small_version.engine(model, max_model_len=LIMIT) as llm:
        plain = small_version.generate(llm, prompts, tokens)
        asked = small_version.second_turn(prompts, plain)
        again = small_version.generate(llm, asked, tokens // 4)
    rows, wrong = [], 0
    for k in listed(paths, int):
        for depth in listed(depths, int):
            for block in listed(blocks, int):
                for cramped in small.split(","):
                    settings = {"block_size": block}
                    if cramped == "yes":
                        settings["num_gpu_blocks_override"] = max(
                            SMALL_CACHE * 32 // block, LIMIT // block + 2
                        )
                        settings["max_num_batched_tokens"] = 256
                    made = _greedy(model, k, depth, settings, prompts, plain, asked, again)
                    bad = sum(not same for same in made.pop("same")) or (
                        cramped == "yes" and not made["preempted"]
                    )
                    wrong += bool(bad)
                    label = [str(k), str(depth), str(block), cramped]
                    rows.append([*label, *map(str, made.values()), "WRONG" if bad else "equal"])
                    print(rows[-1], file=sys.stderr, flush=True)
    columns = ["k", "L", "block", "small cache", "tokens a step", "tokens behind path 1"]
    columns += ["lists cut", "preempted", "prefix hits", "seconds", "texts"]
    finish(f"greedy, {tokens} tokens, 8 requests, SmolLM2-135M float32", columns, rows, wrong)


def _greedy(
    model: Path, k: int, depth: int, settings: Any, prompts: Any, plain: Any, asked: Any, again: Any
) -> dict[str, Any]:
    """One engine: the script, a second turn and the table, each compared with plain decoding."""
    from tests.engine import scripted_paths
    from tests.engine import test_paths as small_version
    from tests.engine.engines import STAND, counters, engine

    begin, texts = time.perf_counter(), [p + a for p, a in zip(prompts, plain, strict=True)]
    texts += [p + a for p, a in zip(asked, again, strict=True)]
    options = {"candidates": k, "table_mib": 16}
    with engine(
        model, proposer=STAND, draft_length=depth, options=options, max_model_len=LIMIT, **settings
    ) as llm:
        script = (texts, list({2, k}), list({4, depth}), 49152)
        llm.collective_rpc(scripted_paths.follow_script, args=script)
        same = [small_version.generate(llm, prompts, len(plain[0])) == plain]
        seen = llm.collective_rpc(scripted_paths.seen)[0]
        hits = small_version.metric(llm, "prefix_cache_hits")
        accepted, steps = (counters(llm)[c] for c in ("num_accepted_tokens", "num_drafts"))
        same.append(small_version.generate(llm, asked, len(again[0])) == again)
        hits = small_version.metric(llm, "prefix_cache_hits") - hits
        llm.collective_rpc(scripted_paths.end_script)
        same.append(small_version.generate(llm, prompts, len(plain[0])) == plain)
        return {
            "same": same,
            "tokens a step": f"{1 + accepted / steps:.2f}",
            "others": sum(n for path, n in seen.items() if isinstance(path, int)),
            "cut": seen.get("cut", 0),
            "preempted": int(small_version.metric(llm, "num_preemptions")),
            "hits": int(hits),
            "seconds": round(time.perf_counter() - begin),
        }


@app.command()
def law(samples: int = 81920, temperatures: str = "0.7,1", top_p: float = 0.8) -> None:
    """Sampled texts against the exact law, every way of drafting with every rule."""
    from tests.engine import path_pairs, sampled_laws, tiny
    from tests.engine.engines import counters
    from tests.engine.exact import ExactModel, Sampling

    settings = [Sampling(t) for t in listed(temperatures, float)]
    settings += [Sampling(s.temperature, top_p=top_p) for s in settings]
    tests = (len(path_pairs.PAIRS) + 2) * len(settings)
    rows, wrong = [], 0
    mistakes = [
        (path_pairs.publish_another_law, "without_replacement", "rrs_without_replacement"),
        (path_pairs.drop_by_token, "iid", "kseq"),
    ]
    cases = [(None, *pair) for pair in path_pairs.PAIRS] + mistakes
    with TemporaryDirectory() as folder:
        model = tiny.build(Path(folder), sharpness=2.2)
        reference = ExactModel(model)
        laws = [reference.joint_after_first(sampled_laws.PROMPT, s, prune=1e-8) for s in settings]
        with path_pairs.path_engine(model) as llm:
            sampled_laws.sample(llm, settings[0], 256)
            for mistake, drafting, rule in cases:
                for sampling, exact in zip(settings, laws, strict=True):
                    llm.collective_rpc(path_pairs.switch, args=(drafting, rule))
                    if mistake is not None:
                        llm.collective_rpc(mistake)
                    begin, before = time.perf_counter(), counters(llm)
                    drawn = sampled_laws.sample(llm, sampling, samples)
                    after = counters(llm)
                    accepted, steps = (
                        after[c] - before[c] for c in ("num_accepted_tokens", "num_drafts")
                    )
                    fits = sampled_laws.fits(drawn, exact, tests)
                    bad = fits is (mistake is not None)
                    wrong += bad
                    rows.append(
                        [
                            drafting,
                            rule,
                            f"{sampling.temperature:g}",
                            f"{sampling.top_p:g}",
                            mistake.__name__ if mistake else "",
                            f"{1 + accepted / steps:.2f}",
                            f"{sampled_laws.plan(exact, samples, tests).power(0.02):.3f}",
                            f"{time.perf_counter() - begin:.0f}",
                            ("fits" if fits else "rejected") + (" WRONG" if bad else ""),
                        ]
                    )
                    print(rows[-1], file=sys.stderr, flush=True)
    columns = ["drafting", "rule", "T", "top-p", "mistake", "tokens a step", "power at TV 0.02"]
    columns += ["seconds", "law"]
    finish(f"law of three positions, {samples} samples each", columns, rows, wrong)


if __name__ == "__main__":
    app()
