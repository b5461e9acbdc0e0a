"""Every sampling parameter with drafts: the law, the tokens and the values of plain decoding.

One engine of ours and one without speculation serve the module. Laws at T > 0 are compared with
the exact law that the parameters make of the model's logits (tests/engine/exact_parameters.py);
false-alarm budget 1e-9 for the module, split over ``TESTS`` tests by a union bound that holds for
every n. Power: TV 0.08 is found with probability above 0.95, asserted in ``test_power``.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from tests.engine import exact_parameters, tiny
from tests.engine.engines import STAND, counters, engine
from tests.engine.exact import ExactModel, Law
from tests.engine.exact_parameters import Parameters
from tests.engine.tiny import token
from theory.equivalence import FitPlan, joint_counts, plan_fit
from vllm_plugin.local_engine import runner_of

pytestmark = [pytest.mark.engine, pytest.mark.slow]
N = 6_144
CHILDREN = 32
BINS = 40
TESTS = 32
PROMPT = [5, 6, 7, 5, 6, 7, 5, 6]
SETTINGS = {
    "min_p, logit_bias, presence": Parameters(
        temperature=0.8, min_p=0.05, logit_bias={5: 1.5, 6: -2.0, 20: 5.0, 21: 5.0}, presence=1.5
    ),
    "frequency, repetition": Parameters(
        frequency=2.0, repetition=1.3, logit_bias={15: 8.0, 16: 8.0, 17: 6.0}
    ),
    "bad words, allowed": Parameters(
        allowed=tuple(range(3, 15)), bad_words=((7,), (5, 6), (3, 9), (8, 8), (11, 8))
    ),
    "min_tokens": Parameters(min_tokens=2, logit_bias={2: 4.5}),
    "logit_bias, min_p, top-k, top-p": Parameters(
        temperature=1.3, logit_bias={9: 2.0, 10: 2.0}, min_p=0.12, top_k=7, top_p=0.9
    ),
}
SEEDED = 2  # every second request
LETTERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny"), sharpness=1.2, tokenizer=True)


@pytest.fixture(scope="module")
def exact(model: Path) -> ExactModel:
    return ExactModel(model)


@pytest.fixture(scope="module")
def law(exact: ExactModel) -> Any:
    @cache
    def of(name: str) -> Law:
        return exact_parameters.joint_of_second_and_third(exact, PROMPT, SETTINGS[name])

    return of


EVERYTHING: dict[str, Any] = {
    "max_num_seqs": 256,
    "max_model_len": 96,
    "logits_processors": ["tests.engine.processors:ByRequest"],
    "reasoning_config": {"reasoning_start_str": "{", "reasoning_end_str": "}:"},
}


@pytest.fixture(scope="module")
def llm(model: Path, stock: Any) -> Iterator[Any]:
    """Started last, since each engine takes vLLM's counters from those before it."""
    options = {"order": 1, "table_mib": 1}
    with engine(model, proposer=STAND, draft_length=3, options=options, **EVERYTHING) as started:
        yield started


@pytest.fixture(scope="module")
def stock(model: Path) -> Iterator[Any]:
    with engine(model, **EVERYTHING) as started:
        yield started


def vllm_parameters(s: Parameters, **settings: Any) -> Any:
    """The same parameters as vLLM takes them."""
    from vllm import SamplingParams

    made = SamplingParams(
        temperature=s.temperature,
        top_k=s.top_k,
        top_p=s.top_p,
        min_p=s.min_p,
        logit_bias=dict(s.logit_bias) or None,
        allowed_token_ids=list(s.allowed) or None,
        presence_penalty=s.presence,
        frequency_penalty=s.frequency,
        repetition_penalty=s.repetition,
        min_tokens=s.min_tokens or 0,
        ignore_eos=s.min_tokens is None,
        **settings,
    )
    made._bad_words_token_ids = [list(word) for word in s.bad_words] or None
    return made


def parameters(**settings: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**({"ignore_eos": True} | settings))


def generate(llm: Any, prompts: list[list[int]], parameters: Any) -> list[Any]:
    return llm.generate([{"prompt_token_ids": p} for p in prompts], parameters, use_tqdm=False)


def tokens(outputs: list[Any]) -> list[list[int]]:
    return [list(o.token_ids) for out in outputs for o in out.outputs]


def others(n: int) -> list[list[int]]:
    return [[(7 * i + j) % 50 + 3 for j in range(5 + i)] for i in range(n)]


def sample(llm: Any, names: list[str], n: int) -> dict[str, NDArray[np.int64]]:
    """Tokens 2 and 3 of n continuations for each setting, (n, 2), all settings in one batch."""
    asked = [
        (name, vllm_parameters(SETTINGS[name], n=CHILDREN, max_tokens=5, seed=seed))
        for i in range(n // CHILDREN)
        for seed in [1_000_003 * i if i % SEEDED else None]
        for name in names
    ]
    outputs = generate(llm, [PROMPT] * len(asked), [p for _, p in asked])
    drawn: dict[str, list[list[int]]] = {name: [] for name in names}
    for (name, _), output in zip(asked, outputs, strict=True):
        for child in output.outputs:
            text = [*child.token_ids, exact_parameters.EOS, exact_parameters.EOS]
            drawn[name].append(text[1:3])
    return {name: np.array(pairs, np.int64) for name, pairs in drawn.items()}


def plan(law: Law, n: int) -> FitPlan:
    return plan_fit(law.ravel(), n, false_alarm=1e-9, tests=TESTS, min_expected=n / BINS)


def fits(drawn: NDArray[np.int64], law: Law) -> bool:
    return not plan(law, len(drawn)).evaluate(joint_counts(drawn, law.shape[0])).rejected


@pytest.fixture(scope="module")
def samples(llm: Any) -> dict[str, NDArray[np.int64]]:
    sample(llm, list(SETTINGS), CHILDREN)  # a table that knows some contexts
    before = counters(llm)
    drawn = sample(llm, list(SETTINGS), N)
    after = counters(llm)
    drafted, accepted = (after[c] - before[c] for c in ("num_draft_tokens", "num_accepted_tokens"))
    assert drafted > 1.5 * N * len(SETTINGS)  # the positions under test are really drafted
    assert 0.1 < accepted / drafted < 0.95  # and q is neither p nor hopeless
    return drawn


@pytest.mark.parametrize("name", SETTINGS)
def test_power(law: Any, name: str) -> None:
    assert law(name).sum() == pytest.approx(1, abs=1e-9)
    assert plan(law(name), N).power(0.08) > 0.95


@pytest.mark.parametrize("name", SETTINGS)
def test_the_law_is_that_of_the_parameters(
    samples: dict[str, NDArray[np.int64]], law: Any, name: str
) -> None:
    assert fits(samples[name], law(name))
    half = np.arange(N) // CHILDREN % SEEDED == 1
    assert fits(samples[name][half], law(name)), "requests with a seed"
    assert fits(samples[name][~half], law(name)), "requests without a seed"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_parameter_that_is_ignored_is_found_out(
    samples: dict[str, NDArray[np.int64]], exact: ExactModel, name: str
) -> None:
    """Each setting without one of its parameters is another law, and the test sees it."""
    s = SETTINGS[name]
    for field in fields(s):
        default = getattr(Parameters(), field.name)
        if getattr(s, field.name) == default or field.name == "min_tokens":
            continue
        without = exact_parameters.joint_of_second_and_third(
            exact, PROMPT, replace(s, **{field.name: default})
        )
        assert not fits(samples[name], without), field.name


def _forget_drafts_in_penalties(worker: Any, forget: bool) -> None:
    """The mistake of ALGORITHMS.md 5, trap 5: rows after a draft are penalised as if before it."""
    from vllm_plugin import row_requests

    texts = row_requests._Texts
    if forget:
        texts.right = texts.of
        texts.of = lambda self, r: list(self.batch.req_output_token_ids[self.rows[r].owner])
    else:
        texts.of = texts.right


def test_penalties_that_forget_the_drafts_are_found_out(llm: Any, law: Any) -> None:
    name = "min_p, logit_bias, presence"
    llm.collective_rpc(_forget_drafts_in_penalties, args=(True,))
    try:
        assert not fits(sample(llm, [name], 2 * N)[name], law(name))
    finally:
        llm.collective_rpc(_forget_drafts_in_penalties, args=(False,))


GREEDY: dict[str, dict[str, Any]] = {
    "logit_bias": {"logit_bias": {9: 4.0, 5: -3.0}},
    "min_p": {"min_p": 0.2},
    "bad_words": {"bad_words": ["a", "the", "c d"]},
    "bias and penalties": {"logit_bias": {9: 4.0}, "repetition_penalty": 1.5},
    "min_tokens": {"min_tokens": 20, "ignore_eos": False, "logit_bias": {2: 30.0}},
    "stop strings": {"stop": ["ab", "th", "q"]},
    "stop strings kept": {"stop": ["y", "k"], "include_stop_str_in_output": True, "min_tokens": 9},
    "stop tokens": {"stop_token_ids": [9, 12, 30]},
    "repetition": {"repetition_detection": {"max_pattern_size": 4, "min_count": 3}},
    "allowed": {"allowed_token_ids": list(range(3, 9))},
}


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_texts_equal_stock(llm: Any, stock: Any, name: str) -> None:
    from vllm.sampling_params import RepetitionDetectionParams

    settings = dict(GREEDY[name])
    if "repetition_detection" in settings:
        settings["repetition_detection"] = RepetitionDetectionParams(
            **settings["repetition_detection"]
        )
    asked = parameters(temperature=0, max_tokens=50, **settings)
    plain = parameters(temperature=0, max_tokens=50)
    prompts = [PROMPT, *others(4)]
    before = counters(llm)["num_accepted_tokens"]
    ours, reference = (
        generate(x, prompts, [asked, plain, asked, asked, plain]) for x in (llm, stock)
    )
    assert counters(llm)["num_accepted_tokens"] > before
    for a, b in zip(ours, reference, strict=True):
        assert a.outputs[0].text == b.outputs[0].text
        assert list(a.outputs[0].token_ids) == list(b.outputs[0].token_ids)
        assert a.outputs[0].finish_reason == b.outputs[0].finish_reason
        assert a.outputs[0].stop_reason == b.outputs[0].stop_reason


LOGPROBS: list[dict[str, Any]] = [
    {"logprobs": 4, "prompt_logprobs": 2},
    {"logprobs": 0, "logit_bias": {9: 3.0}, "presence_penalty": 0.5},
    {"logprobs": 3, "stop": ["ab", "th", "q"]},
    {"logprob_token_ids": [3, 9, 11]},
    {},
]


def test_logprobs_equal_stock(llm: Any, stock: Any) -> None:
    """All kinds in one batch for ours; stock one by one, since it mixes kinds of a batch up."""
    asked = [parameters(temperature=0, max_tokens=30, **settings) for settings in LOGPROBS]
    ours = generate(llm, [PROMPT] * len(asked), asked)
    for mine, one in zip(ours, asked, strict=True):
        theirs = generate(stock, [PROMPT], one)[0]
        a, b = mine.outputs[0], theirs.outputs[0]
        assert list(a.token_ids) == list(b.token_ids)
        same_values(a.logprobs, b.logprobs)
        same_values(mine.prompt_logprobs, theirs.prompt_logprobs)


def same_values(ours: Any, theirs: Any) -> None:
    if theirs is None:
        assert ours is None
        return
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert list(a) == list(b)
            assert [x.rank for x in a.values()] == [x.rank for x in b.values()]
            assert [x.logprob for x in a.values()] == pytest.approx(
                [x.logprob for x in b.values()], abs=1e-3
            )


def without_drafts(reason: str) -> float:
    """How many requests were served without drafts, as a server's /metrics would show it."""
    name = "specproof:requests_without_drafts_total"
    return REGISTRY.get_sample_value(name, {"reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("reason", "settings"),
    [
        ("custom_logits_processor", {"extra_args": {"force_every": 3}}),
        ("thinking_token_budget", {"thinking_token_budget": 4, "logit_bias": {tiny.token("{"): 9}}),
    ],
)
def test_requests_without_drafts_equal_stock_and_are_counted(
    llm: Any, stock: Any, reason: str, settings: dict[str, Any]
) -> None:
    """They share batches with drafted requests, enter and leave them, and change places."""
    special = parameters(temperature=0, max_tokens=24, **settings)
    plain = [parameters(temperature=0, max_tokens=n) for n in (7, 40, 13, 25)]
    prompts = [PROMPT, *others(7)]
    asked = [plain[0], special, plain[1], special, plain[2], special, plain[3], special]
    seen, drafted = without_drafts(reason), counters(llm)["num_drafts"]
    ours = tokens(generate(llm, prompts, asked))
    # One by one: stock leaves a finished request's budget to whoever takes its place in the batch.
    reference = [tokens(generate(stock, [p], a))[0] for p, a in zip(prompts, asked, strict=True)]
    assert ours == reference
    assert without_drafts(reason) == seen + 4
    drafted_together = counters(llm)["num_drafts"]
    assert drafted_together > drafted
    alone = tokens(generate(llm, [prompts[1]], special))
    assert alone == [reference[1]]
    assert counters(llm)["num_drafts"] == drafted_together
    parameter = next(iter(settings))
    rest = {k: v for k, v in settings.items() if k != parameter}
    ignored = parameters(temperature=0, max_tokens=24, **rest)
    assert tokens(generate(stock, [prompts[1]], ignored)) != alone  # the parameter does something


def _count_trimmed(worker: Any) -> None:
    from vllm_plugin.pending import PendingDraft

    right = PendingDraft.chain

    def counted(self: Any, scheduled: Any) -> Any:
        chain = right(self, scheduled)
        PendingDraft.trimmed += chain is not None and not chain.has_bonus
        return chain

    PendingDraft.trimmed = 0
    PendingDraft.right = right
    PendingDraft.chain = counted


def _trimmed(worker: Any) -> int:
    from vllm_plugin.pending import PendingDraft

    return int(PendingDraft.trimmed)


def _resample_what_was_trimmed(worker: Any) -> None:
    """The mistake of ALGORITHMS.md 5, trap 4: the refused position is drawn from p."""
    from vllm_plugin.pending import Chain, PendingDraft

    right = PendingDraft.right

    def forgetful(self: Any, scheduled: Any) -> Any:
        chain = right(self, scheduled)
        if chain is None or chain.has_bonus:
            return chain
        n = len(scheduled)
        return Chain(chain.tokens[:n], chain.law_ids[:n], chain.law[:n], has_bonus=True)

    PendingDraft.chain = forgetful


def _right_again(worker: Any) -> None:
    from vllm_plugin.pending import PendingDraft

    PendingDraft.chain = PendingDraft.right


def _draft_letters(worker: Any, designed: bool) -> None:
    """Drafts of known law, far from p: a letter that fits or one that the grammar refuses."""
    drafter = runner_of(worker).drafter.adapter.drafter
    if not designed:
        del drafter.draft
        return
    right, noise = drafter.draft, np.random.default_rng(4)
    pair = [token("a"), token("z")]

    def draft(requests: Any) -> Any:
        drafts = right(requests)
        drafts.lengths[:] = np.minimum(requests.budgets, drafts.tokens.shape[1])
        drafts.tokens[:] = noise.choice(pair, drafts.tokens.shape)
        drafts.law_ids[:] = -1
        drafts.law_ids[..., :2] = pair
        drafts.law_probabilities[:] = 0
        drafts.law_probabilities[..., :2] = 0.5
        return drafts

    drafter.draft = draft


def letters(llm: Any, n: int) -> Counter[tuple[int, ...]]:
    """Answers under the grammar [ab]{4}, among requests without it."""
    from vllm.sampling_params import StructuredOutputsParams

    grammar = StructuredOutputsParams(regex=f"[ab]{{{LETTERS}}}")
    constrained = [
        parameters(
            structured_outputs=grammar,
            ignore_eos=False,
            max_tokens=8,
            n=CHILDREN,
            seed=1_000_003 * i if i % SEEDED else None,  # children have seed, seed + 1, ..
        )
        for i in range(n // CHILDREN)
    ]
    asked = [*constrained, *[parameters(max_tokens=6)] * CHILDREN]
    outputs = generate(llm, [PROMPT] * len(asked), asked)[: len(constrained)]
    return Counter(tuple(c.token_ids) for output in outputs for c in output.outputs)


def letters_fit(drawn: Counter[tuple[int, ...]], answers: dict[tuple[int, ...], float]) -> bool:
    assert set(drawn) <= set(answers)
    law = np.array(list(answers.values()))
    counts = np.array([drawn[text] for text in answers])
    n = int(counts.sum())
    made = plan_fit(law, n, false_alarm=1e-9, tests=TESTS, min_expected=n / BINS)
    return not made.evaluate(counts).rejected


def test_the_law_under_a_grammar_that_trims_drafts(llm: Any, exact: ExactModel) -> None:
    answers = exact_parameters.joint_of_letters(exact, PROMPT, LETTERS)
    llm.collective_rpc(_count_trimmed)
    llm.collective_rpc(_draft_letters, args=(True,))
    try:
        drawn = letters(llm, N)
        assert llm.collective_rpc(_trimmed)[0] > N
        assert letters_fit(drawn, answers)
        llm.collective_rpc(_resample_what_was_trimmed)
        assert not letters_fit(letters(llm, N), answers), "a wrong rule that must be found out"
    finally:
        llm.collective_rpc(_right_again)
        llm.collective_rpc(_draft_letters, args=(False,))


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["the", "ba"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "grammar",
    [{"json": SCHEMA}, {"choice": ["the", "theme", "bath", "aaab"]}, {"regex": "(ab|ba){3}c?"}],
    ids=lambda grammar: next(iter(grammar)),
)
def test_structured_greedy_texts_equal_stock(llm: Any, stock: Any, grammar: Any) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    asked = parameters(
        temperature=0,
        max_tokens=60,
        ignore_eos=False,
        structured_outputs=StructuredOutputsParams(**grammar),
        logprobs=2,
        logit_bias={token("}"): 3.0},
    )
    plain = parameters(temperature=0, max_tokens=40)
    prompts = [PROMPT, *others(4)]
    ours, theirs = (generate(x, prompts, [asked, plain, asked, asked, plain]) for x in (llm, stock))
    assert tokens(ours) == tokens(theirs)
    for a, b in zip(ours, theirs, strict=True):
        same_values(a.outputs[0].logprobs, b.outputs[0].logprobs)
    assert ours[0].outputs[0].text


def _break_rows(worker: Any, broken: bool) -> None:
    """Logits of requests that ask for it are replaced before they are sampled, NaN for example."""
    runner = runner_of(worker)
    kind = type(runner)
    if not broken:
        del kind._sample
        return
    right = kind._sample

    def _sample(self: Any, logits: Any, metadata: Any) -> Any:
        counts = [0] * self.input_batch.num_reqs if metadata is None else metadata.num_draft_tokens
        row = 0
        for request_id, n in zip(self.input_batch.req_ids, counts, strict=True):
            wanted = (self.requests[request_id].sampling_params.extra_args or {}).get("logits")
            if wanted == "one nan":
                logits[row : row + n + 1, 9] = float("nan")
            elif wanted is not None:
                logits[row : row + n + 1] = float(wanted)
            row += n + 1
        return right(self, logits, metadata)

    kind._sample = _sample


@contextmanager
def broken_rows(*engines: Any) -> Iterator[None]:
    for x in engines:
        x.collective_rpc(_break_rows, args=(True,))
    try:
        yield
    finally:
        for x in engines:
            x.collective_rpc(_break_rows, args=(False,))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", ["nan", "-inf", "one nan"])
def test_rows_without_a_law_harm_nobody_else(
    llm: Any, stock: Any, logits: str, temperature: float
) -> None:
    """The request itself goes on with the tokens of stock's CPU sampler; the others as ever."""
    plain = parameters(temperature=0, max_tokens=30)
    seeded = parameters(temperature=1.0, max_tokens=30, seed=7)
    bad = parameters(temperature=temperature, max_tokens=20, extra_args={"logits": logits})
    prompts = [PROMPT, *others(4)]
    whole = tokens(generate(llm, prompts, [plain, seeded, plain, seeded, plain]))
    with broken_rows(llm, stock):
        ours = tokens(generate(llm, prompts, [plain, seeded, bad, seeded, plain]))
        theirs = tokens(generate(stock, prompts, [plain, plain, bad, plain, plain]))
    assert [ours[i] for i in (0, 1, 3, 4)] == [whole[i] for i in (0, 1, 3, 4)]
    if logits == "one nan" and temperature:
        assert len(ours[2]) == 20
        assert 9 not in ours[2] + theirs[2]
    else:
        assert ours[2] == theirs[2] == [ours[2][0]] * 20
    assert tokens(generate(llm, prompts, plain))[0] == whole[0]


def _keep_state_by_row(worker: Any) -> None:
    """Load a processor that no request can be told of, as ``--logits-processors`` would."""
    from tests.engine.processors import ByRow

    runner = runner_of(worker)
    runner.input_batch.logitsprocs.non_argmax_invariant.append(ByRow(None, None, False))
    adapter = getattr(getattr(runner, "drafter", None), "adapter", None)
    if adapter is not None:
        adapter.runner = None  # what was found out about the processors is found out again


def test_a_processor_by_batch_row_stops_drafting(llm: Any, stock: Any) -> None:
    """Last in the module: it changes both engines."""
    for x in (llm, stock):
        x.collective_rpc(_keep_state_by_row)
    reason = "custom_logits_processor"
    seen, drafted = without_drafts(reason), counters(llm)["num_drafts"]
    asked = [parameters(temperature=0, max_tokens=n) for n in (9, 40, 21, 33, 12, 30)]
    prompts = [PROMPT, *others(5)]
    ours, theirs = (tokens(generate(x, prompts, asked)) for x in (llm, stock))
    assert ours == theirs
    assert all(a != b for text in ours for a, b in pairwise(text))
    assert counters(llm)["num_drafts"] == drafted
    assert without_drafts(reason) == seen + len(asked)
