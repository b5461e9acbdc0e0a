"""The different candidates of one node, as places in its law, in the order of their draws."""

from typing import Any

from numba import njit


@njit(inline="always")
def first_places(scores: Any, n: Any, count: Any, picks: Any) -> None:
    """The places of the ``count <= n`` smallest of ``scores[:n]``, smallest first; ties by place.

    With scores ``E_x / q(x)``, or their logarithms, E independent exponentials, these are the first
    arrivals of the exponential race of q, which are draws from q without replacement.
    """
    held = 0
    for e in range(n):
        place = held
        if held < count:
            held += 1
        elif scores[e] < scores[picks[count - 1]]:
            place = count - 1
        else:
            continue
        while place > 0 and scores[picks[place - 1]] > scores[e]:
            picks[place] = picks[place - 1]
            place -= 1
        picks[place] = e


@njit(inline="always")
def draw_rest(law: Any, n: Any, taken: Any, uniform: Any) -> Any:
    """A place drawn from the law without the ``taken`` ones, by ``uniform`` in [0, 1).

    The masses that are left are summed, not subtracted from 1: no cancellation for tiny ones.
    """
    left = 0.0
    for e in range(n):
        if not taken[e]:
            left += law[e]
    mass, place = 0.0, -1
    for e in range(n):
        if not taken[e]:
            place = e
            mass += law[e]
            if uniform * left < mass:
                break
    return place
