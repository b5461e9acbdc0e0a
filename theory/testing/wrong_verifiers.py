"""Negative controls that run: every mistake of `theory.wrong_rules`, and those that need noise.

A kit that does not refute every one of these is not a test. Mistakes of one node are written once,
in exact form, and made samplers by `theory.testing.derived`; mistakes of shared noise are a right
sampler with a `Scheme` that hands noise on; mistakes of a chain are samplers of their own.
"""

from __future__ import annotations

import numpy as np

from theory.laws import Floats, Ints
from theory.testing.derived import verifier_of
from theory.testing.right_verifiers import block_thresholds, finish, token, token_chain
from theory.testing.schemes import Scheme, draw_iid
from theory.testing.verifier import Verifier
from theory.wrong_rules import WRONG_RULES


def _draft_noise_accepts(noise: Floats, uniforms: Floats) -> Floats:
    return np.concatenate([noise[:, :1], uniforms[:, 1:]], axis=1)


def _draft_noise_emits(noise: Floats, uniforms: Floats) -> Floats:
    return np.concatenate([uniforms[:, :-1], noise[:, :1]], axis=1)


def _coin_emits(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    return token(p, q, candidates, np.repeat(uniforms[:, :1], uniforms.shape[1], axis=1))


def _block_up_to_the_first_failure(
    p: Floats, q: Floats, candidates: Ints, uniforms: Floats
) -> Ints:
    """`theory.wrong_rules.block_up_to_the_first_failure`, for given uniforms."""
    reach, thresholds = block_thresholds(p, q, candidates)
    kept = np.cumprod(uniforms[:, :-1] < thresholds, axis=1).sum(axis=1)
    scale = np.take_along_axis(reach, kept[:, None], axis=1)[:, 0]
    return finish(p, q, candidates, kept, scale, uniforms[:, -1])


def _judged_by_the_first_row(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    stale = np.repeat(p[:, :1], p.shape[1], axis=1)
    return token_chain(stale, q, candidates, uniforms)


def _bonus_from_the_row_before(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    p[:, -1] = p[:, -2]
    return token_chain(p, q, candidates, uniforms)


WRONG: dict[str, Verifier] = {
    verifier.name: verifier
    for verifier in (
        *(verifier_of(rule) for rule in WRONG_RULES.values()),
        Verifier(
            "draft_noise_decides",
            "Trap 3: the uniform that drew the token also decides on it (shared_noise, with the "
            "noise really shared).",
            token,
            drafts=Scheme("iid, noise reused to accept", draw_iid, share=_draft_noise_accepts),
        ),
        Verifier(
            "draft_noise_emits",
            "Trap 3: the uniform that drew the refused token also draws the one in its place.",
            token,
            drafts=Scheme("iid, noise reused to emit", draw_iid, share=_draft_noise_emits),
        ),
        Verifier(
            "coin_emits",
            "Trap 3: the uniform that refused the token also draws the one in its place.",
            _coin_emits,
        ),
        Verifier(
            "block_up_to_the_first_failure",
            "The block rule's h_i, but stopping at the first failed test instead of keeping the "
            "largest i.",
            _block_up_to_the_first_failure,
            "chain",
        ),
        Verifier(
            "judged_by_the_first_row",
            "Trap 5: every draft is judged by the law before the first, as when penalties ignore "
            "the drafts before a row.",
            _judged_by_the_first_row,
            "chain",
        ),
        Verifier(
            "bonus_from_the_row_before",
            "The bonus token is drawn from the row of the last draft, not from the one after it.",
            _bonus_from_the_row_before,
            "chain",
        ),
    )
}
"""Every wrong verifier by the name of its mistake."""

__all__ = ["WRONG"]
