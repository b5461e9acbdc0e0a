"""STAND with several paths: candidates of a node are drawn together, and followed further."""

import numpy as np

from proposers.batch import DraftRequests
from proposers.path_batch import DRAFTING, PathDrafts
from proposers.path_beam import draft_beam
from proposers.path_spread import draft_spread
from proposers.path_tree import IID, TOP_PLUS_ONE, WITHOUT_REPLACEMENT, draft_tree
from proposers.shape import TreeShape
from proposers.stand import StandDrafter
from proposers.table import StandTable

MAX_CANDIDATES = 16
SHAPED = ("without_replacement", "top_plus_one")
"""The ways of drafting that can fill any shape."""
_SCHEMES = {
    "iid": IID,
    "without_replacement": WITHOUT_REPLACEMENT,
    "top_plus_one": TOP_PLUS_ONE,
}


class StandPathDrafter(StandDrafter):
    """A :class:`StandDrafter` that also drafts trees, as paths, with the law of every node.

    The law of a node is that of a chain's next token there. A request at temperature 0 gets the
    most probable tokens of the mean law as candidates, deterministically; one with a noise key the
    first arrivals of the race of q with its position-keyed noise; both in trees of the same shape.
    A law of fewer tokens than candidates gives fewer children, a node without one ends its path.

    With ``min_survival`` a node has no children if the verifier is expected to accept one of them
    with less than this probability, :func:`proposers.drafted_tree.child_reach` of the way there
    included; how many children any other node has does not depend on it.

    Parameters
    ----------
    table, draft_length, seed, prompt_visits, min_survival, interpolation
        As of :class:`StandDrafter`; ``draft_length`` is the longest path.
    candidates
        Paths k, 1..16: chains of ``iid``, nodes of a depth of ``beam``, leaves of a shape.
    drafting
        One of :data:`proposers.path_batch.DRAFTING`.
    shape
        Of the trees of :data:`SHAPED`: a fixed one with k leaves, ``root_branching(k, L)`` say. By
        default trees grow by the laws of their nodes (:mod:`proposers.path_spread`).
    max_support
        q is cut to its most probable tokens, at most so many, before anything is drawn; None
        leaves it whole. The rule ``sparse_optimal`` takes 16.
    max_paths
        For ``beam``, k or more, None for k: the leaves that are kept, those of the greatest
        perturbed log-probability. k are the last beam; with k + (L - 1)(k - 1) also every node that
        a beam left behind stays a draft.

    Raises
    ------
    ValueError
        For a parameter outside its range, or that does not go with the others.
    """

    def __init__(
        self,
        table: StandTable,
        *,
        draft_length: int,
        candidates: int = 4,
        drafting: str = "without_replacement",
        shape: TreeShape | None = None,
        max_support: int | None = None,
        max_paths: int | None = None,
        seed: int = 0,
        prompt_visits: bool = True,
        min_survival: float = 0.0,
        interpolation: float = 1.0,
    ) -> None:
        super().__init__(
            table,
            draft_length=draft_length,
            seed=seed,
            prompt_visits=prompt_visits,
            min_survival=min_survival,
            interpolation=interpolation,
        )
        if not 1 <= candidates <= MAX_CANDIDATES:
            raise ValueError(f"candidates is {candidates}; it must lie in 1..{MAX_CANDIDATES}")
        if drafting not in DRAFTING:
            raise ValueError(f"drafting is {drafting!r}; it must be one of {', '.join(DRAFTING)}")
        if max_support is not None and max_support < 1:
            raise ValueError(f"max_support is {max_support}; it must be 1 or more")
        if shape is not None:
            _check_shape(shape, drafting, candidates, draft_length)
        if max_paths is not None and drafting != "beam":
            raise ValueError(f"max_paths goes with drafting 'beam' only; drafting is {drafting!r}")
        if max_paths is not None and max_paths < candidates:
            raise ValueError(
                f"max_paths is {max_paths}; it must be at least the {candidates} candidates"
            )
        self.candidates, self.drafting = candidates, drafting
        self.shape = shape
        if drafting == "iid":
            self.shape = TreeShape.root_branching(candidates, draft_length)
        whole = 2 * table.entries
        self._support = whole if max_support is None else min(max_support, whole)
        self.paths = candidates
        if drafting == "beam":
            most = candidates + (draft_length - 1) * (candidates - 1)
            self.paths = min(max_paths or candidates, most)
        self._path_rng = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence([seed, 0x9A7B5]))
        )

    def draft_paths(self, requests: DraftRequests, min_survival: float = 0.0) -> PathDrafts:
        """Draft up to ``paths`` paths of ``min(draft_length, budget)`` tokens for every request.

        ``min_survival`` holds for this call where it is above the drafter's own.
        """
        batch, steps, paths = len(requests), self.draft_length, self.paths
        made = PathDrafts(
            tokens=np.full((batch, paths, steps), -1, np.int32),
            lengths=np.zeros((batch, paths), np.int64),
            law_ids=np.full((batch, paths, steps, self._support), -1, np.int32),
            laws=np.zeros((batch, paths, steps, self._support), np.float64),
        )
        asked = requests.arrays()
        least = max(self.min_survival, float(min_survival))
        settings = (least, self.interpolation, self._support)
        out = (made.tokens, made.lengths, made.law_ids, made.laws)
        table, order = self.table.arrays, self.table.order
        if self.drafting == "beam":
            nodes = 1 + self.candidates * (steps - 1)
            uniforms = self._path_rng.random((batch, nodes, self._support))
            draft_beam(table, order, self.candidates, paths, asked, uniforms, *settings, *out)
        elif self.shape is None:
            uniforms = self._path_rng.random((batch, paths * steps))
            draft_spread(table, order, _SCHEMES[self.drafting], asked, uniforms, *settings, *out)
        else:
            uniforms = self._path_rng.random((batch, len(self.shape.nodes)))
            scheme = _SCHEMES[self.drafting]
            draft_tree(table, order, self.shape.arrays, scheme, asked, uniforms, *settings, *out)
        return made


def _check_shape(shape: TreeShape, drafting: str, candidates: int, draft_length: int) -> None:
    if drafting not in SHAPED:
        raise ValueError(
            f"a shape goes with drafting {' or '.join(SHAPED)}; drafting is {drafting!r}"
        )
    if shape.paths != candidates:
        raise ValueError(
            f"the shape has {shape.paths} paths and candidates is {candidates}; "
            "they must be the same"
        )
    if shape.depth > draft_length:
        raise ValueError(
            f"the shape is {shape.depth} tokens deep, draft_length is {draft_length}; "
            "make it that much at least"
        )
