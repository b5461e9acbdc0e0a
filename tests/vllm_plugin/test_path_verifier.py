"""The verifier of several paths: the walk of vllm_plugin.paths, with all that an engine adds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler

from proposers.noise import request_key
from tests.vllm_plugin.node_cases import SCHEMES, draw
from tests.vllm_plugin.plain_batch import V, batch, shaped
from vllm_plugin import nodes, paths
from vllm_plugin.keyed_sampler import keyed_choice
from vllm_plugin.path_drafts import PendingPaths
from vllm_plugin.path_verifier import PathRequest, PathVerifier
from vllm_plugin.paths import Paths
from vllm_plugin.row_laws import row_laws

DEPTH, ENTRIES = 3, 6
RULES = ("kseq", "rrs", "rrs_without_replacement", "top_plus_one", "sparse_optimal", "match")
PLAIN = SamplingParams(temperature=1.0)
GREEDY = SamplingParams(temperature=0.0)
SEEDED = SamplingParams(temperature=0.7, top_k=9, seed=5)
MIXED = [PLAIN, GREEDY, SEEDED, PLAIN, GREEDY, PLAIN, SEEDED]


def drawn_paths(scheme: str, rng: np.random.Generator) -> PendingPaths:
    """Three children of the root, two of each of them, chains behind; iid: four whole chains."""
    branching = (4, 1, 1) if scheme == "iid" else (3, 2, 1)
    ids, law = {}, {}
    found: list[tuple[int, ...]] = [()]
    for children in branching:
        grown: list[tuple[int, ...]] = []
        for path in found:
            if path not in law:  # chains of equal beginnings share their nodes
                ids[path] = rng.permutation(V)[:ENTRIES]
                law[path] = rng.dirichlet(np.ones(ENTRIES))
            if path and rng.random() < 0.2:
                grown.append(path)  # it ends here
                continue
            slots = draw(law[path][None], children, scheme, rng)[0]
            grown += [(*path, int(ids[path][s])) for s in slots if s >= 0]
        found = grown
    shape = (len(found), DEPTH)
    tokens = np.full(shape, -1, np.int32)
    law_ids, laws = np.full((*shape, ENTRIES), -1, np.int32), np.zeros((*shape, ENTRIES))
    for j, path in enumerate(found):
        for i in range(len(path)):
            tokens[j, i] = path[i]
            law_ids[j, i], laws[j, i] = ids[path[:i]], law[path[:i]]
    lengths = np.array([len(path) for path in found])
    return PendingPaths.of(7, tokens, lengths, law_ids, laws, most=int(rng.integers(1, 7)))


def requests_of(
    scheme: str, parameters: list[SamplingParams], rng: np.random.Generator
) -> tuple[list[PathRequest], torch.Tensor]:
    """Requests whose lists were cut somewhere, or not, and logits for their rows."""
    made, first = [], 0
    for index, p in enumerate(parameters):
        pending = drawn_paths(scheme, rng)
        whole = len(pending.flat(0)) + 1
        inputs = whole if rng.random() < 0.6 else int(rng.integers(1, whole + 1))
        rows = pending.rows(inputs)
        made.append(
            PathRequest(
                index=index, text_length=7, first_row=first, tokens=pending.tokens,
                key=0 if p.seed is None else request_key(p.seed), discarded=False,
                lengths=pending.lengths, law_ids=pending.law_ids, laws=pending.laws,
                rows=np.where(rows >= 0, rows + first, -1), pending=pending, inputs=inputs,
            )
        )  # fmt: skip
        first += inputs
    logits = torch.from_numpy(rng.normal(0, 1.5, (first, V))).float()
    for r in made:  # drafts that are likely, or no walk would go deep
        for j, i in zip(*np.nonzero(r.tokens >= 0), strict=True):
            if r.rows[j, i] >= 0:
                logits[r.rows[j, i], r.tokens[j, i]] += 2
    return made, logits


def verifier(
    rule: str, parameters: list[SamplingParams], *, mode: Any = "raw_logprobs", **changed: Any
) -> PathVerifier:
    n = len(parameters)
    runner, metadata = batch(parameters, [[1]] * n, [[2]] * n)
    greedy = all(p.temperature == 0 for p in parameters)
    runner.input_batch.sampling_metadata = replace(metadata, all_greedy=greedy, **changed)
    runner.input_batch.thinking_budget_state_holder = None
    runner.sampler, runner.speculative_config = Sampler(mode), None
    return PathVerifier(runner, rule)


def as_walked(made: list[PathRequest]) -> Paths:
    count = max(r.tokens.shape[0] for r in made)

    def padded(name: str, empty: Any) -> Any:
        arrays = [getattr(r, name) for r in made]
        whole = np.full((len(made), count, *arrays[0].shape[1:]), empty, arrays[0].dtype)
        for b, array in enumerate(arrays):
            whole[b, : len(array)] = array
        return torch.from_numpy(whole)

    return Paths(
        padded("rows", -1), padded("tokens", -1).long(),
        padded("law_ids", 0).long().clamp(min=0), padded("laws", 0.0),
    )  # fmt: skip


class Uniforms:
    """In place of torch.rand: the same numbers for every request at a depth."""

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        self.accept = torch.from_numpy(rng.random((DEPTH + 1, count)))
        self.emit = torch.from_numpy(rng.random(DEPTH + 1))
        self.depth = 0

    def __call__(self, shape: tuple[int, int], **settings: Any) -> torch.Tensor:
        d, self.depth = self.depth, self.depth + 1
        one = torch.cat([self.emit[d : d + 1], self.accept[d, : shape[1] - 1]])
        return one.expand(shape).contiguous()


def followed(r: PathRequest, choose: Any) -> list[int]:
    """The target's own tokens along the paths, as long as there is a row (the match rule)."""
    emitted: list[int] = []
    while True:
        d = len(emitted)
        same = [
            j
            for j in range(len(r.tokens))
            if r.lengths[j] >= d and r.tokens[j, :d].tolist() == emitted
        ]
        rows = {int(r.rows[j, d]) for j in same} - {-1}
        if not rows:
            return emitted
        (row,) = rows
        emitted.append(choose(row, d))


@pytest.mark.parametrize("rule", RULES)
def test_it_emits_what_the_walk_emits(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests without a seed against vllm_plugin.paths, the others against their own choices."""
    rng = np.random.default_rng(RULES.index(rule))
    scheme = "without_replacement" if rule == "match" else SCHEMES[rule]
    longest, judge = 0, verifier(rule, MIXED)
    for _ in range(25):
        made, logits = requests_of(scheme, MIXED, rng)
        free = [r for r, p in zip(made, MIXED, strict=True) if p is PLAIN]
        walked = as_walked(free)
        uniforms = Uniforms(rng, 6)
        monkeypatch.setattr(torch, "rand", uniforms)
        found = judge.verify_paths(made, logits.clone()).sampled_token_ids
        monkeypatch.undo()
        count = walked.tokens.shape[1]
        expected, _ = paths.walk(
            nodes.decide, rule, row_laws(logits), walked,
            uniforms.accept[:DEPTH, :count].expand(len(free), DEPTH, count),
            uniforms.emit.expand(len(free), DEPTH + 1),
        )  # fmt: skip
        for r, tokens in zip(free, expected.tolist(), strict=True):
            assert r.emitted == [t for t in tokens if t >= 0]
        tempered = apply_top_k_top_p(logits / 0.7, torch.full((len(logits),), 9), None)
        laws = row_laws(tempered)
        for r, p in zip(made, MIXED, strict=True):
            if p is GREEDY:
                assert r.emitted == followed(r, lambda row, d, z=logits: int(z[row].argmax()))
            if p is SEEDED:
                assert r.emitted == followed(
                    r, lambda row, d, r=r, laws=laws: keyed_choice(laws[row], r.key, 7 + d)
                )
            assert found[r.index].tolist() == r.emitted + [-1] * (found.shape[1] - len(r.emitted))
            if r.emitted[:-1]:
                assert r.pending is not None
                assert any(
                    t[: len(r.emitted) - 1].tolist() == r.emitted[:-1] for t in r.pending.tokens
                )
        assert found.dtype == torch.int32
        assert found.shape[1] == max(len(r.emitted) for r in made)
        longest = max(longest, found.shape[1])
    assert longest == DEPTH + 1


@pytest.mark.parametrize("parameters", [[GREEDY] * 3, [SEEDED] * 3])
def test_batches_of_one_kind(parameters: list[SamplingParams]) -> None:
    rng = np.random.default_rng(20)
    for _ in range(10):
        made, logits = requests_of("top_plus_one", parameters, rng)
        verifier("top_plus_one", parameters).verify_paths(made, logits.clone())
        laws = row_laws(apply_top_k_top_p(logits / 0.7, torch.full((len(logits),), 9), None))
        for r in made:
            if parameters[0] is GREEDY:
                assert r.emitted == followed(r, lambda row, d, z=logits: int(z[row].argmax()))
            else:
                assert r.emitted == followed(
                    r, lambda row, d, r=r, laws=laws: keyed_choice(laws[row], r.key, 7 + d)
                )


def test_a_request_without_paths_emits_one_token_of_its_law() -> None:
    law = np.zeros(V)
    law[[3, 4]] = 0.5
    logits = torch.from_numpy(np.log(np.maximum(law, 1e-30))).float().expand(1000, V).clone()
    judge = verifier("kseq", [PLAIN] * 1000)
    none = PathRequest(
        index=0, text_length=7, first_row=0, key=0, discarded=False,
        tokens=np.zeros((1, 0), np.int32), lengths=np.zeros(1, np.int64),
        law_ids=np.zeros((1, 0, 1), np.int32), laws=np.zeros((1, 0, 1)),
        rows=np.zeros((1, 1), np.int64),
    )  # fmt: skip
    made = [
        replace(none, index=i, first_row=i, rows=none.rows + i, emitted=[]) for i in range(1000)
    ]
    found = judge.verify_paths(made, logits).sampled_token_ids
    assert found.shape == (1000, 1)
    counts = np.bincount(found[:, 0].numpy(), minlength=V)
    assert counts[3] + counts[4] == 1000
    assert abs(counts[3] - 500) < 6.2 * np.sqrt(250)  # false alarm below 1e-9
    assert not any(r.accepted or r.going for r in made)


def test_a_row_that_is_no_law_does_not_end_the_others() -> None:
    rng = np.random.default_rng(21)
    made, logits = requests_of("iid", [PLAIN] * 3, rng)
    logits[made[1].first_row] = torch.nan
    verifier("kseq", [PLAIN] * 3).verify_paths(made, logits)
    assert made[1].emitted[0] == 0  # as vLLM's CPU sampler
    assert all(r.emitted for r in made)


SHAPED = [
    SamplingParams(temperature=0.8, presence_penalty=1.5, min_p=0.02, logit_bias={3: 2.0}),
    SamplingParams(temperature=1.2, repetition_penalty=1.7, frequency_penalty=0.9),
    SamplingParams(temperature=1.0, min_tokens=3, stop_token_ids=[5, 6], top_k=12, top_p=0.9),
]
SHAPED[1]._bad_words_token_ids = [[9], [2, 8], [8, 7]]


def test_p_is_that_of_a_plain_step_behind_the_paths_own_prefix() -> None:
    """Penalties, bad words and minimum lengths see the drafts that were accepted, no others."""
    rng = np.random.default_rng(22)
    deep = 0
    for _ in range(25):
        judge = verifier("kseq", SHAPED, no_penalties=False)
        made, logits = requests_of("iid", SHAPED, rng)
        seen: list[tuple[torch.Tensor, Any]] = []
        right = judge.decide

        def decide(
            rule: str,
            p: torch.Tensor,
            n: Any,
            u: Any,
            v: Any,
            *,
            seen: Any = seen,
            right: Any = right,
        ) -> Any:
            seen.append((p.clone(), n))
            return right(rule, p, n, u, v)

        judge.decide = decide
        judge.verify_paths(made, logits.clone())
        for depth, (p, judged) in enumerate(seen):
            going = [r for r in made if len(r.emitted) > depth]
            assert len(judged.rows) == len(p) == len(going)
            for place, r in enumerate(going):
                prefix = r.emitted[:depth]
                on = [
                    j
                    for j in range(len(r.tokens))
                    if r.lengths[j] >= depth and r.tokens[j, :depth].tolist() == prefix
                ]
                row = int(r.rows[on, depth].max())
                _, alone = batch([SHAPED[r.index]], [[1]], [[2, *prefix]])
                expected = shaped(logits[row : row + 1].clone(), alone)
                expected = apply_top_k_top_p(expected, alone.top_k, alone.top_p)
                assert torch.equal(p[place], row_laws(expected)[0]), (depth, r.index)
                deep += depth > 0
    assert deep > 20


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs", "raw_logits"])
def test_logprobs_of_emitted_tokens_come_from_the_rows_that_emitted_them(mode: str) -> None:
    rng = np.random.default_rng(23)
    parameters = [PLAIN, GREEDY, SEEDED, PLAIN]
    deep = 0
    for _ in range(10):
        judge = verifier(
            "top_plus_one", parameters, mode=mode, max_num_logprobs=2,
            logprob_token_ids={3: [4, 11]},
        )  # fmt: skip
        made, logits = requests_of("top_plus_one", parameters, rng)
        output = judge.verify_paths(made, logits.clone())
        width = output.sampled_token_ids.shape[1]
        tensors = output.logprobs_tensors
        assert tensors is not None
        assert tensors.logprob_token_ids.shape == (len(made) * width, 3)
        for r, p in zip(made, parameters, strict=True):
            for depth, token in enumerate(r.emitted):
                on = [
                    j
                    for j in range(len(r.tokens))
                    if r.lengths[j] >= depth and r.tokens[j, :depth].tolist() == r.emitted[:depth]
                ]
                z = logits[int(r.rows[on, depth].max())][None]
                if mode == "processed_logprobs" and p is SEEDED:
                    z = apply_top_k_top_p(z / 0.7, torch.tensor([9]), None)
                values = (z if mode == "raw_logits" else z.log_softmax(dim=-1))[0]
                at = r.index * width + depth
                ids, found = tensors.logprob_token_ids[at].tolist(), tensors.logprobs[at]
                assert ids[0] == token
                assert torch.equal(found, values[ids])
                rank = int((values >= values[token]).sum())
                assert int(tensors.selected_token_ranks[at]) == rank
                assert ids[1:] == ([4, 11] if r.index == 3 else values.topk(2).indices.tolist())
                deep += depth > 0
    assert deep > 20


def test_nobody_who_asks_for_logprobs_gets_none() -> None:
    rng = np.random.default_rng(24)
    made, logits = requests_of("iid", [PLAIN] * 2, rng)
    assert verifier("kseq", [PLAIN] * 2).verify_paths(made, logits).logprobs_tensors is None
