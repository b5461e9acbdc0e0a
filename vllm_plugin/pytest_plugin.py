"""pytest plugin: the fixture ``assert_lossless(engine_or_sampler, ...)``.

pytest loads this through the entry point group ``pytest11`` wherever specproof is installed, so it
imports nothing before the fixture is used.
"""

from typing import Any

import pytest


@pytest.fixture(name="assert_lossless")
def assert_lossless_fixture() -> Any:
    """The function :func:`assert_lossless`."""
    return assert_lossless


def assert_lossless(engine_or_sampler: Any, **options: Any) -> Any:
    """Fail the test unless the sampler, or the engine, is lossless; return the report.

    A callable is a sampler: ``theory.testing.check_sampler(sampler, **options)``, with at least
    ``vocabulary`` and ``candidates``. Anything else is an engine, a vLLM ``LLM`` or the URL of a
    server: ``vllm_plugin.audit.audit_engine(engine, **options)``. "undecided" fails too: a test
    that could not tell has shown nothing. Raises AssertionError with the report.
    """
    if callable(engine_or_sampler):
        from theory.testing import check_sampler

        report: Any = check_sampler(engine_or_sampler, **options)
    else:
        from vllm_plugin.audit import audit_engine

        report = audit_engine(engine_or_sampler, **options)
    if report.verdict != "lossless":
        raise AssertionError(str(report))
    return report
