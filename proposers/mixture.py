"""The law of a context, mixed with the law of the next shorter one: what little data leaves open.

A long context that was seen once says less than its ten entries pretend. Its law is therefore
mixed with that of the context one token shorter, by how often it was seen:

    law = c/(c + a) law_m + a/(c + a) law_(m-1),

c the visits of the longer one (after decay), a the ``interpolation`` strength; a = 0 is the plain
back-off of STAND. Interpolation by counts is the oldest remedy of n-gram models (Jelinek and
Mercer, 1980; Witten and Bell, 1991). On recorded trajectories a = 1 adds 1.1-1.8 % block efficiency
at T = 0.7 and T = 1, and deeper mixtures add nothing to that.
"""

from typing import Any

from numba import njit


@njit(inline="always")
def mix(table: Any, longer: Any, shorter: Any, strength: Any, ids: Any, law: Any) -> Any:
    """Write the mixture of two slots, most probable first; returns its number of entries.

    ``shorter`` -1 or strength 0 gives the longer one's law alone. ids (2E,) int32, law (2E,)
    float64 are written up to the number returned; the rest of ids becomes -1.
    """
    entries = table.ids.shape[1]
    c = table.counts[longer]
    weight = 1.0 if shorter < 0 else c / (c + strength)
    n = 0
    while n < entries and table.ids[longer, n] >= 0:
        ids[n] = table.ids[longer, n]
        law[n] = weight * table.probabilities[longer, n]
        n += 1
    if weight < 1:
        for e in range(entries):
            token = table.ids[shorter, e]
            if token < 0:
                break
            mass = (1.0 - weight) * table.probabilities[shorter, e]
            place = 0
            while place < n and ids[place] != token:
                place += 1
            if place < n:
                mass += law[place]
            else:
                n += 1
            while place > 0 and law[place - 1] < mass:
                ids[place], law[place] = ids[place - 1], law[place - 1]
                place -= 1
            ids[place], law[place] = token, mass
    ids[n:] = -1
    return n
