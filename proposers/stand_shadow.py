"""What drafts of emitted tokens would have been worth, straight from the rows that STAND learns."""

from typing import Any

import numpy as np
from numba import njit

from proposers.batch import Doubles, Floats, VerifiedRows
from proposers.context_keys import context_keys, salt_at
from proposers.length.features import NAMES, write_features
from proposers.length.shadow import head_probability
from proposers.mixture import mix
from proposers.stand import StandDrafter, reshape_law
from proposers.table import longest_match


def shadow(drafter: StandDrafter, rows: VerifiedRows) -> tuple[Floats, Doubles]:
    """Features and acceptance labels of every row that emitted a token, as if one were drafted.

    To be asked before the rows are observed, which need emitted tokens and temperatures. The label
    is min(1, q(y)/p(y)), see :mod:`proposers.length.shadow`, with p from the row's own entries;
    requests' top-k and top-p are not looked at. nan where no token was emitted, or none would be
    drafted.

    Shapes: features (R, F) float32, labels (R,) float64.
    """
    count = rows.ends.shape[0]
    features = np.full((count, len(NAMES)), np.nan, np.float32)
    labels = np.full(count, np.nan)
    _shadow(
        drafter.table.arrays, drafter.table.order, rows.tokens, rows.begins, rows.ends, rows.ids,
        rows.probabilities, rows.emitted, rows.temperatures, rows.groups, drafter.interpolation,
        features, labels,
    )  # fmt: skip
    return features, labels


@njit(cache=True, nogil=True)
def _shadow(
    table: Any, order: Any, tokens: Any, begins: Any, ends: Any, heads: Any, laws: Any,
    emitted: Any, temperatures: Any, groups: Any, interpolation: Any, features: Any, labels: Any,
) -> Any:  # fmt: skip
    keys = np.empty(order, np.uint64)
    ids = np.empty(2 * table.ids.shape[1], np.int32)
    mean, q = np.empty(ids.shape[0]), np.empty(ids.shape[0])
    q_ids = np.empty(ids.shape[0], np.int32)
    depth = 0
    for r in range(ends.shape[0]):
        follows = r > 0 and begins[r] == begins[r - 1] and ends[r] == ends[r - 1] + 1
        depth = depth + 1 if follows else 0
        if emitted[r] < 0:
            continue
        longest = context_keys(tokens, begins[r], ends[r], order, keys, salt_at(groups, r))
        slot, matched = longest_match(table, keys, longest)
        if slot < 0:
            continue
        known = mix(table, keys, slot, matched, interpolation, ids, mean)
        n = reshape_law(ids, mean, temperatures[r], 0, 1.0, q_ids, q)
        p = head_probability(emitted[r], heads[r], laws[r], temperatures[r])
        if n == 0 or not p > 0:  # nan, or too small for this temperature
            continue
        write_features(
            features[r], matched, table.counts[slot], mean[:known], q, n, depth, temperatures[r]
        )
        own = 0.0
        for e in range(n):
            if q_ids[e] == emitted[r]:
                own += q[e]
        labels[r] = min(1.0, own / p)
