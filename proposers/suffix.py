"""Suffix decoding: copy the likeliest continuation of the longest match in suffix trees.

One tree holds the request's own text, one the answers of all requests, finished ones too (at most
``max_cached_requests``, the oldest leave first). The end of the text is matched in both, the match
of the highest score proposes what most often followed it: at most ``max_spec_factor`` times as
many tokens as matched, each of estimated probability ``min_token_prob`` or more along the chain.

The trees are those of the package ``arctic-inference``, by the authors, called as vLLM calls them
(vllm/v1/spec_decode/suffix_decoding.py). Source: SuffixDecoding, arXiv 2411.04975.
"""

from typing import Any

import numpy as np

from proposers.batch import (
    DraftRequests,
    Drafts,
    Followed,
    Ints,
    Longs,
    VerifiedRows,
    follow_chain,
    point_masses,
)

PACKAGE = "arctic_inference"
MISSING = (
    "suffix decoding needs the package arctic-inference, which is not installed; "
    "pip install arctic-inference==0.3.0 builds it from source (see requirements/bench.txt)"
)


class SuffixDrafter:
    """Deterministic drafts from suffix trees: q is a point mass on every drafted token.

    Requests that were not started have no tree and get no drafts.

    Parameters
    ----------
    draft_length
        Most tokens drafted for a request, K >= 1.
    max_tree_depth
        Depth of the trees, and so the longest context and draft, in tokens.
    max_spec_factor
        A match of n tokens proposes at most ``max_spec_factor * n``.
    min_token_prob
        Least estimated probability of a drafted token, in [0, 1].
    max_cached_requests
        Answers kept in the shared tree; 0 keeps none.

    Raises
    ------
    ValueError
        For a parameter outside its range.
    ImportError
        One sentence when ``arctic-inference`` is not installed.
    """

    wants_rows = False
    wants_emitted = False
    has_groups = False

    def __init__(
        self,
        *,
        draft_length: int,
        max_tree_depth: int = 24,
        max_spec_factor: float = 1.0,
        min_token_prob: float = 0.1,
        max_cached_requests: int = 10_000,
    ) -> None:
        if draft_length < 1:
            raise ValueError(f"draft_length is {draft_length}; it must be 1 or more")
        if max_tree_depth < 1:
            raise ValueError(f"max_tree_depth is {max_tree_depth}; it must be 1 or more")
        if not max_spec_factor >= 0:
            raise ValueError(f"max_spec_factor is {max_spec_factor}; it must be 0 or more")
        if not 0 <= min_token_prob <= 1:
            raise ValueError(f"min_token_prob is {min_token_prob}; it must lie in [0, 1]")
        if not 0 <= max_cached_requests < 2**31:
            raise ValueError(
                f"max_cached_requests is {max_cached_requests}; it must lie in 0..{2**31 - 1}"
            )
        try:
            from arctic_inference.suffix_decoding import SuffixDecodingCache
        except ImportError:
            raise ImportError(MISSING) from None
        self.draft_length = draft_length
        self.max_tree_depth = max_tree_depth
        self.max_spec_factor = float(max_spec_factor)
        self.min_token_prob = float(min_token_prob)
        self._cache: Any = SuffixDecodingCache(
            max_tree_depth=max_tree_depth, max_cached_requests=max_cached_requests
        )
        self._prompts: dict[int, Ints] = {}  # of requests that no draft was asked for so far
        self._learned: dict[int, int] = {}  # tokens of each other request that its trees hold

    def start(self, handle: int, prompt: Ints, group: int = 0) -> None:
        """Keep the prompt, shape (n,) int32; the first draft builds the request's tree from it.

        As in vLLM: to start a request may evict an answer that others of the step still draft from.
        """
        self._prompts[handle] = np.array(prompt, np.int32)

    def observe(self, rows: VerifiedRows) -> None:
        """Nothing to learn from target laws."""

    def draft(self, requests: DraftRequests) -> Drafts:
        """Take in what each text gained, then propose at most ``min(draft_length, budget)``."""
        return self.propose(requests)[0]

    def propose(self, requests: DraftRequests) -> tuple[Drafts, Longs]:
        """:meth:`draft`, and how many tokens of each text the proposal's context matched."""
        batch = len(requests)
        tokens = np.full((batch, self.draft_length), -1, np.int32)
        lengths, matched = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        for b in range(batch):
            handle, end = int(requests.handles[b]), int(requests.lengths[b])
            text = requests.tokens[requests.rows[b], :end]
            if not self._learn(handle, text):
                continue
            most = min(self.draft_length, int(requests.budgets[b]))
            if most < 1:
                continue
            found = self._cache.speculate(
                handle,
                np.ascontiguousarray(text[max(0, end - self.max_tree_depth) :], np.int32),
                max_spec_tokens=most,
                max_spec_factor=self.max_spec_factor,
                min_token_prob=self.min_token_prob,
            )
            n = len(found.token_ids)
            tokens[b, :n], lengths[b], matched[b] = found.token_ids, n, found.match_len
        return point_masses(tokens, lengths), matched

    def follow(self, requests: DraftRequests, continuation: Ints) -> Followed:
        """The proposed tokens as point masses along a continuation."""
        return follow_chain(self.draft(requests), continuation)

    def finish(self, handle: int) -> None:
        """Drop the request's own tree; its answer stays in the shared one until evicted."""
        self._prompts.pop(handle, None)
        if self._learned.pop(handle, None) is not None:
            self._cache.stop_request(handle)

    def _learn(self, handle: int, text: Ints) -> bool:
        """Whether the request has a tree, which holds its text from now on."""
        prompt = self._prompts.pop(handle, None)
        if prompt is not None:
            self._cache.start_request(handle, prompt)
            self._learned[handle] = prompt.shape[0]
        begin = self._learned.get(handle)
        if begin is None:
            return False
        if begin < text.shape[0]:
            self._cache.add_active_response(handle, np.ascontiguousarray(text[begin:], np.int32))
            self._learned[handle] = text.shape[0]
        return True
