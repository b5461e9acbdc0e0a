"""The optimal coupling in rationals: maximum flow from candidate sets to the tokens they hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from fractions import Fraction

from theory.candidates import set_law
from theory.optimum import Drafts

Members = tuple[int, ...]
Node = tuple[str, object]


def optimal_coupling(
    p: Sequence[Fraction], q: Sequence[Fraction], k: int, drafts: Drafts
) -> tuple[dict[tuple[int, Members], Fraction], dict[Members, Fraction]]:
    """Largest S[i, t] with sum_t S <= p_i, sum_i S <= P(t), i in t; and P(t). All exact.

    Shortest augmenting paths (Edmonds and Karp 1972): the number of augmentations depends on the
    graph only, so rationals terminate.
    """
    chances = set_law(q, k, drafts)
    room: dict[Node, dict[Node, Fraction]] = {("source", 0): {}, ("sink", 0): {}}

    def connect(a: Node, b: Node, capacity: Fraction) -> None:
        room.setdefault(a, {})[b] = capacity
        room.setdefault(b, {}).setdefault(a, Fraction(0))

    for members, chance in chances.items():
        connect(("source", 0), ("set", members), chance)
        for i in members:
            connect(("set", members), ("token", i), Fraction(1))
    for i, mass in enumerate(p):
        connect(("token", i), ("sink", 0), Fraction(mass))
    while path := _shortest_path(room):
        push = min(room[a][b] for a, b in path)
        for a, b in path:
            room[a][b] -= push
            room[b][a] += push
    coupling = {
        (i, members): room["token", i]["set", members]
        for members in chances
        for i in members
        if room["token", i]["set", members]
    }
    return coupling, chances


def _shortest_path(room: dict[Node, dict[Node, Fraction]]) -> list[tuple[Node, Node]]:
    source: Node = ("source", 0)
    sink: Node = ("sink", 0)
    before: dict[Node, Node] = {source: source}
    queue = deque([source])
    while queue:
        here = queue.popleft()
        for there, capacity in room[here].items():
            if capacity > 0 and there not in before:
                before[there] = here
                queue.append(there)
    if sink not in before:
        return []
    path: list[tuple[Node, Node]] = []
    here = sink
    while here != source:
        path.append((before[here], here))
        here = before[here]
    return path[::-1]
