"""A kit that proves or refutes any verification rule: `check_sampler`, right and wrong verifiers.

    from theory.testing import check_sampler
    report = check_sampler(my_rule, vocabulary=4, candidates=2)
    assert report.verdict == "lossless", report

p is the target law, q the draft law. Names are loaded on first use; nothing here imports pytest,
torch or vllm.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theory.testing import right_verifiers, wrong_verifiers
    from theory.testing.cases import Case
    from theory.testing.check import assert_lossless, check_sampler, examine
    from theory.testing.outcome import Report
    from theory.testing.schemes import Scheme
    from theory.testing.streams import check_streams
    from theory.testing.verifier import Sampler, Verifier

_HOME = {
    "Case": "cases",
    "Report": "outcome",
    "Sampler": "verifier",
    "Scheme": "schemes",
    "Verifier": "verifier",
    "assert_lossless": "check",
    "check_sampler": "check",
    "check_streams": "streams",
    "examine": "check",
    "right_verifiers": "",
    "wrong_verifiers": "",
}

__all__ = [
    "Case",
    "Report",
    "Sampler",
    "Scheme",
    "Verifier",
    "assert_lossless",
    "check_sampler",
    "check_streams",
    "examine",
    "right_verifiers",
    "wrong_verifiers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'theory.testing' has no attribute {name!r}")
    if not _HOME[name]:
        return import_module(f"theory.testing.{name}")
    return getattr(import_module(f"theory.testing.{_HOME[name]}"), name)
