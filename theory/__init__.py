"""Exact laws, optimal transport and certified bounds for speculative decoding.

p is the target law, q the draft law, k the candidates of one node, everywhere. Names are loaded on
first use, so `import theory` costs nothing; nothing here imports torch, vllm or another package of
this project.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theory.acceptance import RULES, Rule, acceptance_rate, kseq_rho, output_law
    from theory.equivalence import goodness_of_fit, plan_fit, sample_size
    from theory.optimum import Drafts, OptimalAcceptance, optimal_acceptance
    from theory.recursive import estimate_without_replacement
    from theory.sequential import SequentialFit, tv_upper_bound
    from theory.transport import TransportPlan, transport_plan

_HOME = {
    "RULES": "acceptance",
    "Rule": "acceptance",
    "acceptance_rate": "acceptance",
    "kseq_rho": "acceptance",
    "output_law": "acceptance",
    "goodness_of_fit": "equivalence",
    "plan_fit": "equivalence",
    "sample_size": "equivalence",
    "SequentialFit": "sequential",
    "tv_upper_bound": "sequential",
    "Drafts": "optimum",
    "OptimalAcceptance": "optimum",
    "optimal_acceptance": "optimum",
    "estimate_without_replacement": "recursive",
    "TransportPlan": "transport",
    "transport_plan": "transport",
}

__all__ = [
    "RULES",
    "Drafts",
    "OptimalAcceptance",
    "Rule",
    "SequentialFit",
    "TransportPlan",
    "acceptance_rate",
    "estimate_without_replacement",
    "goodness_of_fit",
    "kseq_rho",
    "optimal_acceptance",
    "output_law",
    "plan_fit",
    "sample_size",
    "transport_plan",
    "tv_upper_bound",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'theory' has no attribute {name!r}")
    return getattr(import_module(f"theory.{_HOME[name]}"), name)
