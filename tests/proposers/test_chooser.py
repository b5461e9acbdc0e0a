"""The chooser: against bookkeeping with dictionaries, and blind to what is drawn."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from proposers import (
    AdedDrafter,
    ChooserDrafter,
    Drafter,
    DraftRequests,
    Drafts,
    PromptLookupDrafter,
    StandDrafter,
    StandTable,
    TokenRecyclingDrafter,
    TrigramTable,
    VerifiedRows,
)
from proposers.gains import LEAST_ADVANTAGE, OWN_PRIOR, OWN_WEIGHT, PRIOR
from proposers.members import LEVELS, draws, look
from tests.proposers.batches import requests, verified
from theory.equivalence import joint_counts, plan_fit

V, K = 6, 4
Members = dict[str, Drafter]


def stand(seed: int = 0) -> StandDrafter:
    return StandDrafter(StandTable(budget_bytes=2**18), draft_length=K, seed=seed)


def every(seed: int = 0) -> Members:
    return {
        "stand": stand(seed),
        "prompt_lookup": PromptLookupDrafter(draft_length=K),
        "token_recycling": TokenRecyclingDrafter(draft_length=K, capacity=64),
        "aded": AdedDrafter(TrigramTable(budget_bytes=2**18), draft_length=K),
    }


def reordered(*names: str) -> Callable[[], Members]:
    return lambda: {name: every()[name] for name in names}


class Session:
    """Texts of a small Markov source that grow as an engine's would, and the rows that tell so.

    The law after two tokens is fixed, so tables learn it; three requests are live at a time.
    """

    def __init__(self, seed: int, temperature: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.laws = self.rng.dirichlet(np.full(V, 0.3), (V, V))
        self.temperature = temperature
        self.texts: dict[int, list[int]] = {}
        self.prompts: dict[int, list[int]] = {}
        self.handles = 0

    def law(self, text: list[int]) -> dict[int, float]:
        u, v = [0, 0, *text][-2:]
        return {x: float(p) for x, p in enumerate(self.laws[u, v]) if p > 1e-6}

    def processed(self, text: list[int]) -> dict[int, float]:
        law = self.law(text)
        if self.temperature == 0:
            return {max(law, key=lambda x: law[x]): 1.0}
        weights = {x: p ** (1 / self.temperature) for x, p in law.items()}
        return {x: w / sum(weights.values()) for x, w in weights.items()}

    def admit(self) -> int:
        handle = self.handles
        self.handles += 1
        prompt = self.rng.integers(0, V, int(self.rng.integers(1, 8))).tolist()
        self.texts[handle], self.prompts[handle] = list(prompt), list(prompt)
        return handle

    def grow(self, handle: int, tokens: int) -> tuple[list[list[int]], list[dict[int, float]]]:
        """Emit tokens; the contexts (at most four tokens) and laws of their rows, and one more
        row that a refused draft left behind."""
        contexts, laws = [], []
        for _ in range(tokens):
            text = self.texts[handle]
            contexts.append(text[-4:])
            laws.append(self.law(text))
            p = self.processed(text)
            text.append(int(self.rng.choice(list(p), p=list(p.values()))))
        refused = [*self.texts[handle][-3:], V + 1]
        return [*contexts, refused], [*laws, {0: 0.5, 1: 0.5}]

    def asked(self, handles: list[int], budget: int = K) -> DraftRequests:
        return requests(
            [self.texts[h] for h in handles],
            [budget] * len(handles),
            handles=handles,
            temperature=self.temperature,
        )


class Naive:
    """The chooser's bookkeeping with dictionaries and twins of its members."""

    def __init__(self, members: Members, session: Session) -> None:
        self.members, self.session = members, session
        self.drawing = [m for m, member in enumerate(members.values()) if draws(member)]
        self.own: dict[Any, list[float]] = defaultdict(list)
        self.joint: dict[Any, list[float]] = defaultdict(list)
        self.surprise: dict[tuple[int, int], list[float]] = defaultdict(list)
        self.open: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.seen: dict[int, int] = {}
        self.rows: VerifiedRows | None = None

    def expected(self, m: int, levels: list[int]) -> float:
        own, joint = self.own[m, levels[m]], self.joint[m, levels[m], levels[0]]
        e = sum(own) / (len(own) + PRIOR)
        return (sum(joint) + e * PRIOR) / (len(joint) + PRIOR)

    def score(self, handle: int, asked: DraftRequests, b: int) -> None:
        old = self.seen.get(handle)
        text = self.session.texts[handle]
        for end in range(old if old is not None else len(text), len(text)):
            for start in self.open[handle]:
                i = end - start["begin"]
                for m in range(len(self.members)):
                    if i >= start["spans"][m] or not start["alive"][m]:
                        continue
                    if m in self.drawing and self.session.temperature > 0:
                        p = self.session.processed(text[:end])[text[end]]
                        q = self.q(asked, b, old, end)
                        start["alive"][m] *= min(1.0, q / p)
                    elif start["chains"][m][i] != text[end]:
                        start["alive"][m] = 0.0
                    start["gains"][m] += start["alive"][m]
                start["seen"] = i + 1
            for start in list(self.open[handle]):
                going = [
                    alive and start["seen"] < span
                    for alive, span in zip(start["alive"], start["spans"], strict=True)
                ]
                if not any(going):
                    self.close(handle, start)

    def q(self, asked: DraftRequests, b: int, old: int | None, end: int) -> float:
        """The drawing member's q of one emitted token, followed from the last decision."""
        assert old is not None
        begin = old + (end - old) // K * K
        text = self.session.texts[int(asked.handles[b])]
        ahead = np.full((1, K), -1, np.int32)
        held = text[begin : begin + K]
        ahead[0, : len(held)] = held
        earlier = requests([text[:begin]], [K], handles=[0], temperature=self.session.temperature)
        member = list(self.members.values())[self.drawing[0]]
        return max(float(member.follow(earlier, ahead).q[0, end - begin]), 0.0)

    def close(self, handle: int, start: dict[str, Any]) -> None:
        self.open[handle].remove(start)
        levels = start["levels"]
        for m in range(1, len(self.members)):
            if start["spans"][m]:
                advantage = start["gains"][m] - start["gains"][0]
                self.own[m, levels[m]].append(advantage)
                self.joint[m, levels[m], levels[0]].append(advantage)
                self.surprise[handle, m].append(advantage - start["expected"][m])

    def choose(self, handles: list[int], budget: int) -> list[int]:
        asked = self.session.asked(handles, budget)
        for b, handle in enumerate(handles):
            self.score(handle, asked, b)
        if self.rows is not None:
            for member in self.members.values():
                if member.wants_rows:
                    member.observe(self.rows)
            self.rows = None
        looks = [look(member, asked) for member in self.members.values()]
        choices = []
        for b, handle in enumerate(handles):
            levels = [int(one.levels[b]) for one in looks]
            spans = [int(one.chains.lengths[b]) for one in looks]
            if self.drawing and self.session.temperature > 0:
                spans[self.drawing[0]] = min(budget, K)
            expected = [self.expected(m, levels) if m else 0.0 for m in range(len(looks))]
            best, choice = LEAST_ADVANTAGE, 0
            for m in range(1, len(looks)):
                shown = self.surprise[handle, m]
                advantage = expected[m] + OWN_WEIGHT * sum(shown) / (len(shown) + OWN_PRIOR)
                if spans[m] and advantage > best:
                    best, choice = advantage, m
            choices.append(choice)
            self.seen[handle] = len(self.session.texts[handle])
            self.open[handle].append(
                {
                    "begin": self.seen[handle],
                    "levels": levels,
                    "spans": spans,
                    "chains": [one.chains.tokens[b].tolist() for one in looks],
                    "alive": [1.0] * len(looks),
                    "gains": [0.0] * len(looks),
                    "expected": expected,
                    "seen": 0,
                }
            )
        return choices


def chosen(chooser: ChooserDrafter, handles: list[int]) -> list[int]:
    slots = [chooser._slots[handle] for handle in handles]
    return chooser._courses.choices[slots].tolist()


@settings(deadline=None, max_examples=25, derandomize=True)  # seed 2181351: a near tie
@given(
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    make=st.sampled_from([
        every, reordered("stand", "prompt_lookup"), reordered("prompt_lookup", "stand"),
        reordered("aded", "token_recycling", "prompt_lookup"),
    ]),
    calls=st.sampled_from(["draft", "follow, draft", "draft, follow"]),
    most=st.sampled_from([1, K + 1]),
)  # fmt: skip
def test_choices_and_estimates_equal_those_of_naive_bookkeeping(
    seed: int, temperature: float, make: Callable[[], Members], calls: str, most: int
) -> None:
    """Steps of one token, as in a replay, or of several, as in an engine; requests come and go."""
    session = Session(seed, temperature)
    chooser = ChooserDrafter(make(), draft_length=K)
    naive = Naive(make(), session)
    for _ in range(40):
        if session.texts and session.rng.random() < 0.15:
            gone = int(session.rng.choice(list(session.texts)))
            for each in (chooser, *naive.members.values()):
                each.finish(gone)
            naive.open.pop(gone, None)
            del session.texts[gone]
        while len(session.texts) < 3:
            handle = session.admit()
            for each in (chooser, *naive.members.values()):
                each.start(handle, np.array(session.texts[handle], np.int32))
        handles = list(session.texts)
        grown = [session.grow(h, int(session.rng.integers(1, most + 1))) for h in handles]
        rows = verified(
            [c for contexts, _ in grown for c in contexts], [p for _, laws in grown for p in laws]
        )
        if chooser.wants_rows:
            chooser.observe(rows)
            naive.rows = rows
        budget = int(session.rng.integers(1, K + 2))
        expected = naive.choose(handles, budget)
        asked = session.asked(handles, budget)
        for call in calls.split(", "):
            if call == "draft":
                drafts = chooser.draft(asked)
            else:
                chooser.follow(asked, np.zeros((len(handles), K), np.int32))
            assert chosen(chooser, handles) == expected
        assert (drafts.lengths <= budget).all()
    for m in range(1, len(naive.members)):
        for level in range(LEVELS):
            kind = int(np.digitize(temperature, [1e-9, 0.85]))
            values = naive.own[m, level]
            mean, visits = chooser._estimates.own[m, kind, level]
            assert visits == len(values)
            if values:
                assert mean == pytest.approx(np.mean(values), abs=1e-5)


def learned(make: Callable[[], Members] = every, steps: int = 300) -> tuple[Session, Any]:
    """A chooser that has seen enough to switch between its members."""
    session = Session(3, 1.0)
    chooser = ChooserDrafter(make(), draft_length=K)
    handle = session.admit()
    chooser.start(handle, np.array(session.texts[handle], np.int32))
    for _ in range(steps):
        contexts, laws = session.grow(handle, 1)
        chooser.observe(verified(contexts, laws))
        chooser.draft(session.asked([handle]))
    return session, chooser


def test_every_member_is_scored_though_it_is_never_chosen() -> None:
    _, chooser = learned()
    assert (chooser._estimates.own[1:, 2, :, 1].sum(axis=1) > 50).all()
    rare = chooser.chosen.argmin()
    assert chooser._estimates.own[max(int(rare), 1), 2, :, 1].sum() > chooser.chosen[rare]


def test_the_better_member_is_found() -> None:
    """The text repeats a cycle whose order-1 contexts are ambiguous; the table forgets all of it.

    The look-up copies on, the STAND table is too small to hold anything but the latest bucket.
    """
    cycle = [1, 2, 1, 3, 1, 4, 5] * 40
    table = StandTable(order=1, budget_bytes=2**16)
    chooser = ChooserDrafter(
        {
            "stand": StandDrafter(table, draft_length=K),
            "prompt_lookup": PromptLookupDrafter(draft_length=K),
        },
        draft_length=K,
    )
    chooser.start(0, np.array(cycle[:2], np.int32))
    for end in range(2, len(cycle)):
        chooser.observe(verified([cycle[max(0, end - 4) : end]], [{cycle[end]: 1.0}]))
        drafts = chooser.draft(requests([cycle[: end + 1]], [K], handles=[0]))
    assert chosen(chooser, [0]) == [1]
    assert drafts.law_probabilities[0, 0, 0] == 1.0
    assert chooser.chosen[1] > 0.8 * len(cycle)


def prefer_copies_of_two_tokens(chooser: ChooserDrafter) -> None:
    """As if the second member, the look-up, were known to win where it matches two or more."""
    chooser._estimates.joint[:] = 0
    chooser._estimates.own[:] = 0
    chooser._estimates.own[1, :, 2:] = (2.0, 1e6)


def test_drafts_and_laws_are_those_of_the_member_chosen() -> None:
    session, chooser = learned()
    prefer_copies_of_two_tokens(chooser)
    texts = [session.rng.integers(0, V, 12).tolist() for _ in range(60)]
    handles = list(range(100, 160))
    asked = requests(texts, [K] * 60, handles=handles)
    drafts = chooser.draft(asked)
    choices = np.array(chosen(chooser, handles))
    assert set(choices.tolist()) == {0, 1}
    for m, member in enumerate(chooser.members):
        which = np.flatnonzero(choices == m)
        followed = member.follow(asked.subset(which), drafts.tokens[which])
        held = np.arange(K) < drafts.lengths[which, None]
        entries = followed.law_ids.shape[2]
        np.testing.assert_array_equal(
            drafts.law_ids[which][held][:, :entries], followed.law_ids[held]
        )
        np.testing.assert_array_equal(
            drafts.law_probabilities[which][held][:, :entries], followed.law_probabilities[held]
        )
    along = chooser.follow(asked, drafts.tokens)
    held = np.arange(K) < drafts.lengths[:, None]
    own = drafts.law_ids == drafts.tokens[:, :, None]
    q = np.where(own, drafts.law_probabilities, 0).sum(axis=2)
    np.testing.assert_array_equal(along.q, np.where(held, q, -1.0))


class Peeking(ChooserDrafter):
    """A wrong chooser: it copies where the table happens to have drawn what the look-up says."""

    def draft(self, requests: DraftRequests) -> Drafts:
        drawn = self.members[0].draft(requests)
        copied = self.members[1].draft(requests)
        agrees = (drawn.tokens[:, 0] == copied.tokens[:, 0]) & (copied.lengths > 0)
        ids, law = drawn.law_ids.copy(), drawn.law_probabilities.copy()
        ids[agrees], law[agrees] = -1, 0
        ids[agrees, :, 0] = copied.law_ids[agrees, :, 0]
        law[agrees, :, 0] = copied.law_probabilities[agrees, :, 0]
        return Drafts(
            np.where(agrees[:, None], copied.tokens, drawn.tokens),
            np.where(agrees, copied.lengths, drawn.lengths),
            ids,
            law,
        )


def laws_that_are_kept(drafts: Drafts, *, false_alarm: float) -> list[bool]:
    """For each law published for the first draft: whether the tokens under it follow it.

    What a verifier may rely on is the law it is told: among the requests that were told this q, the
    first tokens must be distributed as q, whatever else was done about them.
    """
    first = np.concatenate([drafts.law_ids[:, 0], drafts.law_probabilities[:, 0]], axis=1)
    laws, group = np.unique(first, axis=0, return_inverse=True)
    kept = []
    for g in range(laws.shape[0]):
        which = np.flatnonzero(group.ravel() == g)
        law: NDArray[np.float64] = np.zeros(V)
        ids, masses = drafts.law_ids[which[0], 0], drafts.law_probabilities[which[0], 0]
        law[ids[ids >= 0]] = masses[ids >= 0]
        plan = plan_fit(law, which.size, false_alarm=false_alarm, tests=laws.shape[0])
        counts = joint_counts(drafts.tokens[which, :1], V)
        kept.append(not plan.evaluate(counts).rejected)
    return kept


@pytest.mark.parametrize("kind", [ChooserDrafter, Peeking])
def test_tokens_follow_the_law_that_is_published_with_them(kind: type[ChooserDrafter]) -> None:
    """20,000 requests with the same few texts, so that the same state drafts again and again.

    False alarm 1e-10. The wrong chooser is refuted on the very same drafts' grouping.
    """
    session, chooser = learned(reordered("stand", "prompt_lookup"))
    prefer_copies_of_two_tokens(chooser)
    if kind is Peeking:
        wrong = Peeking(dict(zip(chooser.names, chooser.members, strict=True)), draft_length=K)
        wrong._estimates = chooser._estimates
        chooser = wrong
    texts = [session.rng.integers(0, V, 12).tolist() for _ in range(10)]
    many = requests(texts * 2000, [K] * 20_000, handles=list(range(1000, 21_000)))
    drafts = chooser.draft(many)
    if kind is ChooserDrafter:
        choices = np.array(chosen(chooser, many.handles.tolist())).reshape(2000, 10)
        assert (choices == choices[0]).all()  # a function of the text alone
        assert set(choices[0].tolist()) == {0, 1}
        assert all(laws_that_are_kept(drafts, false_alarm=1e-10))
    else:
        assert not all(laws_that_are_kept(drafts, false_alarm=1e-10))


def test_rows_reach_the_members_once_and_in_order() -> None:
    class Listening(TokenRecyclingDrafter):
        def __init__(self) -> None:
            super().__init__(draft_length=K)
            self.heard: list[int] = []

        def observe(self, rows: VerifiedRows) -> None:
            self.heard.append(int(rows.ids[0, 0]))

    member = Listening()
    chooser = ChooserDrafter({"token_recycling": member}, draft_length=K)
    for law in (1, 2, 3):
        chooser.observe(verified([[1]], [{law: 1.0}]))
    assert member.heard == [1, 2]
    for _ in range(2):
        chooser.draft(requests([[1]], [K]))
    assert member.heard == [1, 2, 3]


def test_what_is_kept_for_requests_is_given_back() -> None:
    chooser = ChooserDrafter(every(), draft_length=K)
    for wave in range(5):
        handles = list(range(100 * wave, 100 * wave + 20))
        for handle in handles[:10]:  # the others are drafted for without having been started
            chooser.start(handle, np.array([1, 2], np.int32))
        chooser.draft(
            requests([[1, 2, handle % V] for handle in handles], [K] * 20, handles=handles)
        )
        for handle in [*handles, 10_000]:
            chooser.finish(handle)
    assert chooser._slots == {}
    assert chooser._courses.lengths.shape == (32,)
    assert sorted(chooser._free) == list(range(32))


def test_members_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="the members are none"):
        ChooserDrafter({}, draft_length=K)
    with pytest.raises(ValueError, match="at most one draws"):
        ChooserDrafter({"a": stand(), "b": stand()}, draft_length=K)
    with pytest.raises(ValueError, match="draft_length is 0"):
        ChooserDrafter(every(), draft_length=0)
    inner = ChooserDrafter({"a": PromptLookupDrafter(draft_length=K)}, draft_length=K)
    with pytest.raises(TypeError, match="ChooserDrafter cannot be a member"):
        ChooserDrafter({"c": inner}, draft_length=K).draft(requests([[1]], [K]))
