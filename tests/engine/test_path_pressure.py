"""Several paths where the cache is too small: preempted requests, lanes for a few of the paths.

How long a list of drafts is depends on the tokens in it, and a list that needs one block more may
cost its request its place: what is judged then, and what is kept, must not depend on the tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine import scripted_paths, tiny
from tests.engine.engines import STAND, counters, engine
from tests.engine.exact import ExactModel, Sampling
from tests.engine.path_pairs import drop_by_token, switch
from tests.engine.sampled_laws import fits, plan, sample

LIMIT = 320
PATHS, DEPTH = 4, 6
N, TESTS = 10_240, 8
EDGE = [(5 + i * i) % 40 + 3 for i in range(30)]
"""A block of 32 tokens holds this and one token; whether it holds the drafts, depends on them."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny"), sharpness=2.2)


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[Any]:
    with engine(
        model,
        proposer=STAND,
        draft_length=DEPTH,
        options={"candidates": PATHS, "order": 1, "table_mib": 1, "min_survival": 0.03},
        skip_tokenizer_init=True,
        max_model_len=LIMIT,
        max_num_seqs=96,
        block_size=32,
        num_gpu_blocks_override=96,
    ) as started:
        yield started


def parameters(**settings: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**({"ignore_eos": True, "detokenize": False} | settings))


def preemptions(llm: Any) -> float:
    return sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")


def prompts(n: int) -> list[list[int]]:
    return [[(7 * i + j * j) % 60 + 3 for j in range(3 + 5 * i)] for i in range(n)]


def generate(llm: Any, asked: list[list[int]], parameters: Any) -> list[list[int]]:
    outputs = llm.generate([{"prompt_token_ids": p} for p in asked], parameters, use_tqdm=False)
    return [list(o.outputs[0].token_ids) for o in outputs]


def test_preempted_requests_equal_plain_greedy(llm: Any) -> None:
    greedy = parameters(temperature=0, max_tokens=200)
    asked = prompts(24)
    llm.collective_rpc(scripted_paths.draft_nothing)
    plain = generate(llm, asked, greedy)
    texts = [p + text for p, text in zip(asked, plain, strict=True)]
    script = (texts, [2, 3, 4], [2, 4, 6], 64)
    llm.collective_rpc(scripted_paths.follow_script, args=script)
    before = preemptions(llm)
    assert generate(llm, asked, greedy) == plain
    seen = llm.collective_rpc(scripted_paths.seen)[0]
    llm.collective_rpc(scripted_paths.end_script)
    assert preemptions(llm) > before
    assert seen[1] > 100
    assert seen[2] > 20
    assert seen["two blocks"] > 3
    assert generate(llm, asked, greedy) == plain


@pytest.fixture(scope="module")
def law(model: Path) -> Any:
    return ExactModel(model).joint_after_first(EDGE, Sampling(1.0), prune=1e-7)


def test_power(law: Any) -> None:
    assert plan(law, N, TESTS).power(0.06) > 0.95


def test_the_law_of_preempted_requests(llm: Any, law: Any) -> None:
    """Whether a step's drafts fit in one block depends on how many of them differ."""
    llm.collective_rpc(switch, args=("iid", "kseq"))
    sample(llm, Sampling(1.0), 256, prompt=EDGE)  # a table that knows some contexts
    before, drafted = preemptions(llm), counters(llm)["num_draft_tokens"]
    tokens = sample(llm, Sampling(1.0), N, prompt=EDGE)
    assert preemptions(llm) - before > N // 50
    assert counters(llm)["num_draft_tokens"] - drafted > N
    assert fits(tokens, law, TESTS)
    llm.collective_rpc(drop_by_token)
    wrong = sample(llm, Sampling(1.0), N, prompt=EDGE)
    llm.collective_rpc(scripted_paths.end_script)
    assert not fits(wrong, law, TESTS), "a mistake that must be found out"


def test_nothing_is_left_of_200_requests_cancelled_at_random(llm: Any) -> None:
    rng, core = np.random.default_rng(3), llm.llm_engine
    lengths = {f"soak-{i}": int(rng.integers(1, 150)) for i in range(200)}
    before = preemptions(llm)
    for i, (name, length) in enumerate(lengths.items()):
        prompt = [int(t) for t in rng.integers(3, 60, rng.integers(2, 100))]
        asked = parameters(
            temperature=float(i % 3) / 2, max_tokens=length, seed=i if i % 4 == 1 else None
        )
        core.add_request(name, {"prompt_token_ids": prompt}, asked)
    cancelled: set[str] = set()
    finished: dict[str, int] = {}
    while core.has_unfinished_requests():
        for output in core.step():
            if output.finished:
                finished[output.request_id] = len(output.outputs[0].token_ids)
        open_ones = sorted(set(lengths) - cancelled - set(finished))
        if open_ones and len(cancelled) < 80 and rng.random() < 0.5:
            name = open_ones[rng.integers(len(open_ones))]
            core.abort_request([name])
            cancelled.add(name)
        if rng.random() < 0.1:
            check_held(llm)
    assert len(cancelled) == 80
    assert preemptions(llm) > before
    assert all(finished[name] == lengths[name] for name in set(lengths) - cancelled)
    # What ended is forgotten when the next request drafts.
    last = parameters(temperature=0, max_tokens=4)
    assert len(generate(llm, [EDGE], last)[0]) == 4
    assert check_held(llm) <= 1


def check_held(llm: Any) -> int:
    """No scratch block is lost or held twice; returns how many requests hold anything."""
    state = llm.collective_rpc(scripted_paths.sizes)[0]
    assert state["hidden"] > 0
    assert state["free"] + state["in lanes"] == state["hidden"]
    return len({name for names in state["held"].values() for name in names})
