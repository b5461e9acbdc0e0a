"""Continuations that an engine sampled, and the test of their joint law against the exact one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.engine.exact import Law, Sampling
from theory.equivalence import FitPlan, joint_counts, plan_fit

CHILDREN = 32
BINS = 50  # at most: cells are merged until each bin expects n / BINS counts
FALSE_ALARM = 1e-9  # of a suite, split over its tests
PROMPT = [5, 6, 7, 5, 6, 7, 5, 6]


def sample(
    llm: Any, sampling: Sampling, n: int, *, seeded: bool = False, prompt: list[int] = PROMPT
) -> NDArray[np.int64]:
    """Tokens 2..4 of n continuations of the prompt, (n, 3); every second batch with a seed."""
    from vllm import SamplingParams

    parameters = [
        SamplingParams(
            n=CHILDREN,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=1_000_003 * i if seeded and i % 2 else None,
            max_tokens=5,
            ignore_eos=True,
            detokenize=False,
        )
        for i in range(n // CHILDREN)
    ]
    outputs = llm.generate(
        [{"prompt_token_ids": prompt}] * len(parameters), parameters, use_tqdm=False
    )
    return np.array([o.token_ids[1:4] for out in outputs for o in out.outputs], np.int64)


def plan(law: Law, n: int, tests: int) -> FitPlan:
    """The test of n draws; the false-alarm budget is split over so many tests."""
    return plan_fit(law.ravel(), n, false_alarm=FALSE_ALARM, tests=tests, min_expected=n / BINS)


def fits(tokens: NDArray[np.int64], law: Law, tests: int) -> bool:
    """Whether the draws are not told from the law."""
    made = plan(law, len(tokens), tests)
    return not made.evaluate(joint_counts(tokens, law.shape[0])).rejected
