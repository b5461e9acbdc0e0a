"""A replay is held against an engine that really drafts, judges and learns; and the order of calls.

The statistical tests spend FALSE_ALARM each: the simulated engine's steps minus the replay's
expectation, given the text it emitted, has mean 0 whatever the text, answer by answer.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from small_traces import GivenDrafter, Law, trace

from proposers import (
    DraftRequests,
    Drafts,
    PromptLookupDrafter,
    StandDrafter,
    StandTable,
    VerifiedRows,
)
from proposers.replay import Profile, make_drafter, most_tokens, profile, score
from proposers.replay.scoring import RULES
from theory.traces import Sampling, Trace

FALSE_ALARM = 1e-8
V, K, LENGTH, ANSWERS = 64, 4, 48, 160
PROMPTS = [[0, 3, 5, 1], [7, 7, 2]]
RNG = np.random.default_rng(11)
LAWS = RNG.dirichlet(np.full(V, 0.06), (V, V)) * 0.97 + 0.03 / V


def target(text) -> Law:
    return LAWS[text[-2], text[-1]]


def stand(order: int = 2, **options: float) -> StandDrafter:
    table = StandTable(order=order, budget_bytes=2**20)
    return StandDrafter(table, draft_length=K, seed=4, **options)


def judged(rule: str, p: list[Law], q: list[Law], drafts: list[int], rng) -> list[int]:
    """Emitted tokens of one step by the rule's definition; p has one law more than q."""

    def residual(scale: float, i: int) -> int:
        left = np.maximum(scale * p[i] - (q[i] if i < len(q) else 0), 0)
        return int(rng.choice(V, p=left / left.sum()))

    if rule == "match":
        out: list[int] = []
        for i in range(len(drafts) + 1):
            out.append(int(rng.choice(V, p=p[i])))
            if i == len(drafts) or out[-1] != drafts[i]:
                return out
    if rule == "token":
        for i, x in enumerate(drafts):
            if rng.random() >= p[i][x] / q[i][x]:
                return [*drafts[:i], residual(1.0, i)]
        return [*drafts, residual(1.0, len(drafts))]
    reach = [1.0]
    for i, x in enumerate(drafts):
        reach.append(min(1.0, reach[-1] * p[i][x] / q[i][x]))
    kept = 0
    for i in range(1, len(drafts) + 1):
        keep = reach[i]
        if i < len(drafts):
            left = np.maximum(reach[i] * p[i] - q[i], 0).sum()
            keep = 1.0 if left + 1 - reach[i] <= 0 else left / (left + 1 - reach[i])
        kept = i if rng.random() < keep else kept
    return [*drafts[:kept], residual(reach[kept], kept)]


def engine(rule: str, drafter: StandDrafter, answers: int, seed: int) -> tuple[Trace, list[int]]:
    """Texts that a toy engine emits with a shared drafter, and the steps that each took.

    It teaches the rows of emitted tokens only: those of refused branches are in no trace.
    """
    rng = np.random.default_rng(seed)
    recorded, steps = [], []
    for number in range(answers):
        prompt = PROMPTS[number % 2]
        text, count = list(prompt), 0
        drafter.start(number, np.array(text, np.int32))

        def learn(token: int, text: list[int] = text) -> None:
            law = target(text)
            top = np.argsort(-law, kind="stable")[:10].astype(np.int32)
            drafter.observe(
                VerifiedRows(
                    np.array(text, np.int32), np.array([0]), np.array([len(text)]),
                    top[None], law[top][None].astype(np.float32),
                )
            )  # fmt: skip
            text.append(token)

        learn(int(rng.choice(V, p=target(text))))
        end = len(prompt) + LENGTH
        while len(text) < end:
            budget = min(K, end - len(text) - 1)
            drafts = drafter.draft(one_request(text, budget)) if budget else None
            n = int(drafts.lengths[0]) if drafts else 0
            tokens = drafts.tokens[0, :n].tolist() if drafts else []
            q = np.zeros((n, V))
            for i in range(n):
                ids = drafts.law_ids[0, i]
                q[i, ids[ids >= 0]] = drafts.law_probabilities[0, i][ids >= 0]
            p = [target(text + tokens[:i]) for i in range(n + 1)]
            for token in judged(rule, p, list(q), tokens, rng)[: end - len(text)]:
                learn(token)
            count += 1
        recorded.append((number % 2, text[len(prompt) :]))
        steps.append(count)
    return trace(target, recorded, PROMPTS, max_tokens=LENGTH), steps


def one_request(text: list[int], budget: int) -> DraftRequests:
    return DraftRequests(
        tokens=np.array([text], np.int32),
        rows=np.zeros(1, np.int64),
        lengths=np.array([len(text)]),
        budgets=np.array([budget]),
        temperatures=np.ones(1),
        top_k=np.zeros(1, np.int64),
        top_p=np.ones(1),
        noise_keys=np.zeros(1, np.uint64),
        handles=np.zeros(1, np.int64),
    )


def each_answer_a_prompt(recorded: Trace) -> Trace:
    """The same answers, each with a prompt of its own, so that a score keeps them apart."""
    prompts = [PROMPTS[p] for p in recorded.answer_prompts]
    answers = [recorded.tokens[recorded.answer(a)].tolist() for a in range(recorded.answers)]
    return trace(target, list(enumerate(answers)), prompts, max_tokens=recorded.max_tokens)


def surprise(recorded: Trace, steps: list[int], found: Profile, rule: str) -> float:
    """Standard deviations between the engine's steps and the replay's expectation."""
    expected = score(found, recorded, rule=rule, draft_length=K).steps
    gaps = np.array(steps) - expected
    return float(gaps.sum() / np.sqrt((gaps**2).sum()))


LIMIT = norm.isf(FALSE_ALARM / 2)


@pytest.mark.parametrize("rule", RULES)
def test_steps_are_those_of_an_engine_that_drafts_judges_and_learns(rule: str) -> None:
    recorded, steps = engine(rule, stand(min_survival=0.1), ANSWERS, seed=len(rule))
    recorded = each_answer_a_prompt(recorded)
    found = profile(recorded, lambda: stand(min_survival=0.1), draft_length=K)
    assert sum(steps) < 0.9 * ANSWERS * LENGTH  # drafts do get accepted
    assert abs(surprise(recorded, steps, found, rule)) < LIMIT


class Peeking(StandDrafter):
    """Sees the row that it is about to predict: the fault that a replay must not have."""

    rows: VerifiedRows

    def draft(self, requests: DraftRequests) -> Drafts:
        self.table.observe(self.rows)
        return super().draft(requests)


def test_a_table_that_saw_the_row_it_predicts_would_be_found_out() -> None:
    """The negative control of the test above, with the same engine, seeds and limit."""
    recorded, steps = engine("block", stand(min_survival=0.1), ANSWERS, seed=len("block"))
    recorded = each_answer_a_prompt(recorded)

    class Ahead(Peeking):
        def __init__(self) -> None:
            super().__init__(
                StandTable(order=2, budget_bytes=2**20), draft_length=K, seed=4, min_survival=0.1
            )
            self.at = 0

        def observe(self, rows: VerifiedRows) -> None:
            super().observe(rows)
            self.at += 1

        def draft(self, requests: DraftRequests) -> Drafts:
            if self.at < len(recorded):
                text = requests.tokens[0, : requests.lengths[0]]
                row = slice(self.at, self.at + 1)
                self.rows = VerifiedRows(
                    text, np.array([0]), requests.lengths,
                    recorded.ids[row, :10], np.exp(recorded.log_masses[row, :10]),
                )  # fmt: skip
            return super().draft(requests)

    found = profile(recorded, Ahead, draft_length=K)
    assert surprise(recorded, steps, found, "block") > LIMIT


def drawn(answers: int, length: int = 20, seed: int = 2, max_tokens: int | None = None) -> Trace:
    """Answers to the two prompts in turn, drawn from the target."""
    rng = np.random.default_rng(seed)
    given = []
    for number in range(answers):
        text = list(PROMPTS[number % 2])
        for _ in range(length - number % 3):
            text.append(int(rng.choice(V, p=target(text))))
        given.append((number % 2, text[len(PROMPTS[number % 2]) :]))
    return trace(target, given, PROMPTS, max_tokens=max_tokens or length)


def of_answers(recorded: Trace, which: list[int]) -> Trace:
    answers = [
        (int(recorded.answer_prompts[a]), recorded.tokens[recorded.answer(a)].tolist())
        for a in which
    ]
    return trace(target, answers, PROMPTS, max_tokens=recorded.max_tokens)


@pytest.mark.parametrize("order", ["sequential", "lockstep"])
def test_sharing_decides_which_answers_teach_each_other(order) -> None:
    recorded = drawn(6)
    found = {
        share: profile(recorded, stand, draft_length=K, share=share, order=order).q
        for share in ("none", "prompt", "all")
    }
    for a in range(6):
        alone = profile(of_answers(recorded, [a]), stand, draft_length=K, order=order)
        np.testing.assert_array_equal(found["none"][recorded.answer(a)], alone.q)
    for group in ([0, 2, 4], [1, 3, 5]):
        rows = np.concatenate([np.arange(len(recorded))[recorded.answer(a)] for a in group])
        together = profile(of_answers(recorded, group), stand, draft_length=K, order=order)
        np.testing.assert_array_equal(found["prompt"][rows], together.q)
    assert not np.array_equal(found["none"], found["prompt"])
    assert not np.array_equal(found["prompt"], found["all"])


def test_lockstep_is_sequential_where_every_prompt_has_one_answer() -> None:
    recorded = each_answer_a_prompt(drawn(4))
    both = [profile(recorded, stand, draft_length=K, order=o) for o in ("lockstep", "sequential")]
    np.testing.assert_array_equal(both[0].q, both[1].q)
    np.testing.assert_array_equal(both[0].drafted, both[1].drafted)
    many = drawn(4)
    ahead = [profile(many, stand, draft_length=K, order=o).q for o in ("lockstep", "sequential")]
    assert not np.array_equal(*ahead)


class Witness(GivenDrafter):
    """Writes down every call, in the order of the calls."""

    wants_rows = True

    def __init__(self) -> None:
        super().__init__(lambda text: np.full(V, 1 / V), draft_length=K)
        self.calls: list[tuple] = []

    def start(self, handle, prompt, group=0) -> None:
        self.calls.append(("start", handle, prompt.tolist()))

    def observe(self, rows) -> None:
        contexts = [rows.tokens[b:e].tolist() for b, e in zip(rows.begins, rows.ends, strict=True)]
        laws = rows.probabilities.astype(float).round(6).tolist()
        self.calls.append(("observe", contexts, rows.emitted.tolist(), rows.ids.tolist(), laws))

    def _note(self, name: str, requests: DraftRequests) -> None:
        texts = [requests.tokens[r].tolist() for r in requests.rows]
        for text, n in zip(texts, requests.lengths, strict=True):
            assert min(text[:n]) >= 0
            assert set(text[n:]) <= {-1}  # nothing of the future can be read
        texts = [t[:n] for t, n in zip(texts, requests.lengths, strict=True)]
        self.calls.append((name, requests.handles.tolist(), texts, requests.budgets.tolist()))
        assert requests.temperatures.tolist() == [0.5] * len(requests)
        assert requests.top_k.tolist() == [5] * len(requests)
        assert requests.top_p.tolist() == [0.9] * len(requests)

    def draft(self, requests):
        self._note("draft", requests)
        return super().draft(requests)

    def follow(self, requests, continuation):
        self._note("follow", requests)
        self.calls.append(("along", continuation.tolist()))
        return super().follow(requests, continuation)

    def finish(self, handle) -> None:
        self.calls.append(("finish", handle))


def test_the_calls_are_those_of_the_engines_adapter() -> None:
    """Two answers of 3 and 2 tokens, max_tokens 5: budgets fall, an ended one drafts once more."""
    answers = [(0, [4, 1, 0]), (0, [2, 6])]
    recorded = trace(
        target, answers, PROMPTS, max_tokens=5,
        sampling=Sampling(temperature=0.5, top_k=5, top_p=0.9),
    )  # fmt: skip
    made: list[Witness] = []

    def make() -> Witness:
        made.append(Witness())
        return made[-1]

    found = profile(recorded, make, draft_length=K, order="lockstep")
    [drafter] = made
    prompt = PROMPTS[0]

    def seen(contexts: list[list[int]], emitted: list[int]) -> tuple:
        laws = [target(c) for c in contexts]
        ids = [np.argsort(-law, kind="stable")[:10] for law in laws]
        masses = [law[i].astype(np.float32).astype(float) for law, i in zip(laws, ids, strict=True)]
        return (
            "observe", contexts, emitted, [i.tolist() for i in ids],
            [pytest.approx(m, abs=2e-6) for m in masses],
        )  # fmt: skip

    a, b = [*prompt, 4], [*prompt, 2]
    assert drafter.calls == [
        ("start", 0, prompt),
        ("start", 1, prompt),
        seen([prompt, prompt], [4, 2]),
        ("draft", [0, 1], [a, b], [3, 3]),
        ("follow", [0, 1], [a, b], [3, 3]),
        ("along", [[1, 0, -1, -1], [6, -1, -1, -1]]),
        seen([a, b], [1, 6]),
        ("draft", [0, 1], [[*a, 1], [*b, 6]], [2, 2]),
        ("follow", [0], [[*a, 1]], [2]),
        ("along", [[0, -1, -1, -1]]),
        ("finish", 1),
        seen([[*a, 1]], [0]),
        ("draft", [0], [[*a, 1, 0]], [1]),
        ("finish", 0),
    ]
    assert found.drafted.tolist() == [0, 3, 2, 0, 3]
    assert (found.q >= 0).sum(axis=1).tolist() == [0, 2, 1, 0, 1]


def test_the_window_of_a_row_is_long_enough_for_any_table() -> None:
    recorded = drawn(3, length=30)
    wide = profile(recorded, lambda: stand(order=8), draft_length=K)
    assert (wide.q[recorded.answer(2)] > 0).any()
    narrow = profile(recorded, lambda: stand(order=1), draft_length=K)
    assert not np.array_equal(wide.q, narrow.q)


def test_no_draft_where_the_budget_is_used_up() -> None:
    """At max_tokens - 1 emitted tokens nothing can be drafted, and no last draft is drawn."""
    recorded = drawn(1, length=6)
    found = profile(
        recorded, lambda: GivenDrafter(lambda text: np.full(V, 1 / V), draft_length=K),
        draft_length=K,
    )  # fmt: skip
    assert found.drafted.tolist() == [0, 4, 3, 2, 1, 0]
    assert (found.q >= 0).sum(axis=1).tolist() == [0, 4, 3, 2, 1, 0]


def test_progress_counts_every_token_once_and_bad_settings_are_refused() -> None:
    recorded = drawn(5)
    told: list[int] = []
    profile(recorded, stand, draft_length=K, order="lockstep", advance=told.append)
    assert sum(told) == len(recorded)
    with pytest.raises(ValueError, match="draft_length is 0"):
        profile(recorded, stand, draft_length=0)
    with pytest.raises(ValueError, match="share must be one of prompt, all, none"):
        profile(recorded, stand, draft_length=K, share="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a drafter of 4 drafts was made"):
        profile(recorded, stand, draft_length=K + 1)


def test_prompt_lookup_sees_the_growing_text() -> None:
    text = [1, 2, 3, 1, 2, 3, 1, 2]
    recorded = trace(lambda t: np.full(V, 1 / V), [(0, text)], [[5]], max_tokens=99)
    found = profile(recorded, lambda: PromptLookupDrafter(draft_length=2), draft_length=2)
    assert found.q[:, 0].tolist() == [-1, -1, -1, -1, 1, 1, 1, 1]
    assert found.q[:, 1].tolist() == [-1, -1, -1, -1, 1, 1, 1, -1]


@pytest.mark.parametrize("share", ["none", "prompt", "all"])
@pytest.mark.parametrize("name", ["stand", "aded", "token_recycling"])
def test_a_table_sized_for_the_text_drafts_as_a_large_one(share, name) -> None:
    recorded = drawn(9, length=40)
    shown = most_tokens(recorded, share)
    # Prompts of 4 and 3 tokens with five and four answers, the longest of 40 tokens.
    assert shown == {"none": 4 + 40, "prompt": 4 + 195, "all": 4 + 195 + 3 + 156}[share]
    found = [
        profile(
            recorded, make_drafter(name, {"table_mib": 16}, draft_length=K, tokens=tokens),
            draft_length=K, share=share,
        ).q
        for tokens in (None, shown)
    ]  # fmt: skip
    np.testing.assert_array_equal(*found)
    assert make_drafter("stand", draft_length=K, tokens=44)().table.nbytes < 2**20
