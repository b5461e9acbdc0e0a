"""Several paths and requests of every kind: plain decoding's answers, and what a server counts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from tests.engine import exact_parameters, scripted_paths, test_parameters, tiny
from tests.engine.engines import STAND, counters, engine
from tests.engine.exact import ExactModel
from tests.engine.test_parameters import (
    LETTERS,
    LOGPROBS,
    PROMPT,
    SCHEMA,
    generate,
    letters,
    letters_fit,
    others,
    parameters,
    same_values,
    tokens,
)
from tests.engine.tiny import token

LIMIT = 256
PROMPTS = [PROMPT, *others(7)]
N = 3_072
VOCABULARY = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny"), sharpness=1.2, tokenizer=True)


@pytest.fixture(scope="module")
def stock(model: Path) -> Iterator[Any]:
    with engine(model, max_model_len=LIMIT, max_num_seqs=64) as started:
        yield started


@pytest.fixture(scope="module")
def llm(model: Path, stock: Any) -> Iterator[Any]:
    """Started last, since each engine takes vLLM's counters from those before it."""
    with engine(
        model,
        proposer=STAND,
        draft_length=8,
        options={"candidates": 4, "drafting": "iid", "order": 1, "table_mib": 1},
        max_model_len=LIMIT,
        max_num_seqs=64,
        block_size=128,
    ) as started:
        yield started


def follow(llm: Any, texts: list[list[int]], paths: list[int], depths: list[int]) -> None:
    llm.collective_rpc(scripted_paths.follow_script, args=(texts, paths, depths, VOCABULARY))


def seen(llm: Any) -> dict[Any, int]:
    counts: dict[Any, int] = llm.collective_rpc(scripted_paths.seen)[0]
    return counts


@pytest.fixture(scope="module")
def plain(stock: Any) -> list[list[int]]:
    return tokens(generate(stock, PROMPTS, parameters(temperature=0, max_tokens=LIMIT)))


@pytest.fixture(scope="module")
def texts(plain: list[list[int]]) -> list[list[int]]:
    return [p + text for p, text in zip(PROMPTS, plain, strict=True)]


@pytest.fixture
def script(llm: Any, texts: list[list[int]]) -> Iterator[None]:
    follow(llm, texts, [2, 3, 4], [4, 8])
    yield
    llm.collective_rpc(scripted_paths.repair)
    llm.collective_rpc(scripted_paths.end_script)
    llm.reset_prefix_cache()


def answers(llm: Any, length: int = LIMIT) -> list[list[int]]:
    return tokens(generate(llm, PROMPTS, parameters(temperature=0, max_tokens=length)))


def test_greedy_up_to_the_models_length(
    llm: Any, script: None, plain: list[list[int]], texts: list[list[int]]
) -> None:
    assert [len(text) for text in texts] == [LIMIT] * len(PROMPTS)
    assert answers(llm) == plain
    counts = seen(llm)
    assert min(counts[1], counts[2], counts[3]) > 20
    assert counts["two blocks"] > 0


def test_every_emitted_token_is_counted_and_shared_drafts_once(llm: Any, script: None) -> None:
    before = counters(llm)
    emitted = sum(map(len, answers(llm, 100)))
    after, counts = counters(llm), seen(llm)
    drafted, accepted, per_position = (
        after[c] - before[c] if not c.endswith("pos") else np.subtract(after[c], before[c]).sum()
        for c in ("num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos")
    )
    assert drafted == counts["drafts"]
    assert 0 < accepted <= drafted
    assert accepted == per_position
    assert emitted == accepted + counts["steps"]


@pytest.mark.parametrize("part", scripted_paths.SWITCHES)
def test_a_part_that_is_left_out_is_found_out(
    llm: Any, script: None, plain: list[list[int]], part: str
) -> None:
    llm.collective_rpc(scripted_paths.break_part, args=(part,))
    assert answers(llm, 100) != [text[:100] for text in plain]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.5},
        {"frequency_penalty": 0.8, "presence_penalty": 0.4},
        {"logit_bias": {9: 4.0, 5: -3.0}, "min_p": 0.2},
        {"bad_words": ["a", "the", "c d"]},
        {"min_tokens": 20, "ignore_eos": False, "logit_bias": {2: 30.0}},
        {"stop": ["ab", "th", "q"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_greedy_parameters_equal_stock(llm: Any, stock: Any, settings: dict[str, Any]) -> None:
    """First with a table's drafts, then with a script that knows the answers."""
    asked = parameters(temperature=0, max_tokens=60, **settings)
    mixed = [asked, parameters(temperature=0, max_tokens=60)] * (len(PROMPTS) // 2)
    reference = generate(stock, PROMPTS, mixed)
    expected = tokens(reference)
    assert tokens(generate(llm, PROMPTS, mixed)) == expected
    known = [p + text for p, text in zip(PROMPTS, expected, strict=True)]
    follow(llm, known, [2, 4], [4, 8])
    ours = generate(llm, PROMPTS, mixed)
    llm.collective_rpc(scripted_paths.end_script)
    assert tokens(ours) == expected
    assert [o.outputs[0].text for o in ours] == [o.outputs[0].text for o in reference]


def test_logprobs_equal_stock(llm: Any, stock: Any, script: None) -> None:
    """All kinds in one batch for ours; stock one by one, since it mixes kinds of a batch up."""
    asked = [parameters(temperature=0, max_tokens=40, **settings) for settings in LOGPROBS]
    before = counters(llm)["num_accepted_tokens"]
    ours = generate(llm, [PROMPT] * len(asked), asked)
    assert counters(llm)["num_accepted_tokens"] > before + 20
    for mine, one in zip(ours, asked, strict=True):
        theirs = generate(stock, [PROMPT], one)[0]
        a, b = mine.outputs[0], theirs.outputs[0]
        assert list(a.token_ids) == list(b.token_ids)
        same_values(a.logprobs, b.logprobs)
        same_values(mine.prompt_logprobs, theirs.prompt_logprobs)


@pytest.mark.parametrize("kind", [{}, {"top_p": 0.8}, {"presence_penalty": 0.7}])
def test_a_seeded_text_is_that_of_one_candidate(llm: Any, kind: dict[str, Any]) -> None:
    """Without drafts, from the table, along a script of one path and of many: the same tokens."""
    seeded = [parameters(temperature=1.0, max_tokens=60, seed=11 + i, **kind) for i in range(8)]
    llm.collective_rpc(scripted_paths.draft_nothing)
    plain = tokens(generate(llm, PROMPTS, seeded))
    llm.collective_rpc(scripted_paths.end_script)
    assert tokens(generate(llm, PROMPTS, seeded)) == plain
    known = [p + text for p, text in zip(PROMPTS, plain, strict=True)]
    for paths in ([1], [2, 4]):
        follow(llm, known, paths, [4, 8])
        before = counters(llm)["num_accepted_tokens"]
        assert tokens(generate(llm, PROMPTS, seeded)) == plain
        assert counters(llm)["num_accepted_tokens"] > before + 150
        llm.collective_rpc(scripted_paths.end_script)
    free = parameters(temperature=1.0, max_tokens=40)
    mixed = [seeded[i] if i % 2 else free for i in range(8)]
    assert tokens(generate(llm, PROMPTS, mixed))[1::2] == plain[1::2]


def one_path() -> float:
    name = "specproof:requests_with_one_path_total"
    return REGISTRY.get_sample_value(name, {"reason": "structured_output"}) or 0.0


@pytest.mark.parametrize(
    "grammar",
    [{"json": SCHEMA}, {"choice": ["the", "theme", "bath", "aaab"]}],
    ids=lambda grammar: next(iter(grammar)),
)
def test_structured_output_takes_one_path_and_is_counted(
    llm: Any, stock: Any, grammar: dict[str, Any]
) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    asked = parameters(
        temperature=0,
        max_tokens=60,
        ignore_eos=False,
        structured_outputs=StructuredOutputsParams(**grammar),
        logprobs=2,
        logit_bias={token("}"): 3.0},
    )
    mixed = [asked, parameters(temperature=0, max_tokens=40)] * (len(PROMPTS) // 2)
    theirs = generate(stock, PROMPTS, mixed)
    counted = one_path()
    ours = generate(llm, PROMPTS, mixed)
    assert tokens(ours) == tokens(theirs)
    assert one_path() == counted + len(PROMPTS) // 2
    known = [p + text for p, text in zip(PROMPTS, tokens(theirs), strict=True)]
    follow(llm, known, [2, 4], [4, 8])
    ours = generate(llm, PROMPTS, mixed)
    llm.collective_rpc(scripted_paths.end_script)
    for a, b in zip(ours, theirs, strict=True):
        assert list(a.outputs[0].token_ids) == list(b.outputs[0].token_ids)
        same_values(a.outputs[0].logprobs, b.outputs[0].logprobs)


def _draft_letters(worker: Any, mistaken: bool) -> None:
    """Paths of known law, far from p: letters that fit, or that the grammar refuses.

    With the mistake of ALGORITHMS.md 5, trap 4, a path is left out if its first one is refused.
    """
    drafter = scripted_paths.adapter_of(worker).drafter
    right, noise = drafter.draft_paths, np.random.default_rng(4)
    pair = [token("a"), token("z")]

    def draft_paths(requests: Any, min_survival: float) -> Any:
        drafts = right(requests, min_survival)
        steps = drafts.tokens.shape[2]
        drafts.lengths[:] = np.clip(requests.budgets, 0, steps)[:, None]
        inside = np.arange(steps) < drafts.lengths[..., None]
        drafts.tokens[:] = np.where(inside, noise.choice(pair, drafts.tokens.shape), -1)
        drafts.law_ids[:] = -1
        drafts.law_ids[..., :2] = pair
        drafts.laws[:] = 0
        drafts.laws[..., :2] = 0.5
        if mistaken:
            dropped = drafts.tokens[:, :, 0] == pair[1]
            drafts.lengths[dropped] = 0
            drafts.tokens[dropped] = -1
        return drafts

    drafter.draft_paths = draft_paths


def test_the_law_under_a_grammar_that_trims_drafts(
    llm: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused drafts are judged, along paths that were never sent too."""
    expected = exact_parameters.joint_of_letters(ExactModel(model), PROMPT, LETTERS)
    monkeypatch.setattr(test_parameters, "SEEDED", 1)  # no request with a seed
    for mistaken in (False, True):
        llm.collective_rpc(_draft_letters, args=(mistaken,))
        drawn = letters(llm, N)
        llm.collective_rpc(scripted_paths.end_script)
        assert letters_fit(drawn, expected) is not mistaken


def test_nothing_is_left_of_cancelled_requests(llm: Any, script: None) -> None:
    core = llm.llm_engine
    for i, prompt in enumerate(PROMPTS):
        asked = parameters(temperature=0, max_tokens=200)
        core.add_request(f"cancel-{i}", {"prompt_token_ids": prompt}, asked)
    for _ in range(8):
        core.step()
    state = llm.collective_rpc(scripted_paths.sizes)[0]
    assert state["in lanes"] > len(PROMPTS)
    core.abort_request([f"cancel-{i}" for i in range(len(PROMPTS))])
    while core.has_unfinished_requests():
        core.step()
    generate(llm, [PROMPT], parameters(temperature=0, max_tokens=1))
    state = llm.collective_rpc(scripted_paths.sizes)[0]
    assert state["in lanes"] <= 3
    assert state["free"] + state["in lanes"] == state["hidden"]
    assert all(len(names) <= 1 for names in state["held"].values())
