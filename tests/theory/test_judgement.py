"""A node decided for given uniforms, integrated over them, is the node law of the same rule."""

from fractions import Fraction as F
from itertools import pairwise, product

import pytest

from theory import RULES
from theory.acceptance import DISTINCT
from theory.candidates import tuple_law
from theory.exact import kseq_rho, kseq_verdict, node_law
from theory.judgement import RHO_BITS, decide, judgement

LAWS = [
    ((F(1, 2), F(1, 10), F(2, 5)), (F(1, 5), F(1, 2), F(3, 10))),
    ((F(1, 3), F(2, 3), F(0)), (F(0), F(1, 4), F(3, 4))),
    ((F(0), F(0), F(1)), (F(1, 3), F(2, 3), F(0))),
    ((F(1, 2), F(1, 2)), (F(1, 2), F(1, 2))),
]
SEQUENTIAL = [rule for rule in RULES if rule != "coupled"]


def scheme(rule):
    if rule not in DISTINCT:
        return "iid"
    return "top_plus_one" if rule == "top_plus_one" else "without_replacement"


def cells(breaks):
    """Midpoints and lengths of the cells of [0, 1) between exact thresholds."""
    edges = sorted({F(0), F(1), *(b for b in breaks if 0 < b < 1)})
    return [((a + b) / 2, b - a) for a, b in pairwise(edges)]


def integrated(p, q, k, rule):
    joint = {}
    for drawn, chance in tuple_law(q, k, scheme(rule)).items():
        chances, law = judgement(p, q, drawn, rule=rule)
        axes = [cells([c]) for c in chances]
        axes.append(cells([sum(law[: i + 1]) for i in range(len(law))]))
        for point in product(*axes):
            weight = chance
            for _, length in point:
                weight *= length
            u = [middle for middle, _ in point]
            y, accepted = decide(p, q, drawn, u[:-1], u[-1], rule=rule)
            key = (tuple(sorted(drawn)) if rule == "sparse_optimal" else drawn, y, accepted >= 0)
            joint[key] = joint.get(key, F(0)) + weight
    return {key: mass for key, mass in joint.items() if mass}


@pytest.mark.parametrize("rule", SEQUENTIAL)
@pytest.mark.parametrize("laws", LAWS)
def test_integrates_to_the_node_law(rule, laws):
    p, q = laws
    for k in (1, 2):
        if rule == "kseq":
            rho = kseq_rho(p, q, k, bits=RHO_BITS)
            expected = {
                (drawn, y, accepted): chance * mass
                for drawn, chance in tuple_law(q, k, "iid").items()
                for (y, accepted), mass in kseq_verdict(p, q, drawn, rho).items()
            }
        else:
            expected = node_law(p, q, k, rule=rule)
        expected = {key: mass for key, mass in expected.items() if mass}
        assert integrated(p, q, k, rule) == expected


def test_offers_end_at_what_q_cannot_have_drawn():
    p, q = LAWS[1]
    for stranger in (0, -1, 3):
        chances, law = judgement(p, q, (stranger, 1), rule="rrs")
        assert chances == (0, 0)
        assert law == p
    assert judgement(p, q, (1, 1), rule="rrs_without_replacement")[0][1] == 0


def test_coupled_is_no_rule_of_this_form():
    with pytest.raises(ValueError, match="one after the other"):
        judgement(*LAWS[0], (0,), rule="coupled")
