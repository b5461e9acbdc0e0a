"""The families that the plugin adds to ``/metrics``, each named ``specproof:`` and its key here.

docs/metrics.md says for the reader of the page what is said here in one line each.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Tenths of a probability; p belongs to ``DECILES[min(int(10 * p), 9)]``.
DECILES = tuple(f"{i / 10:.1f}-{(i + 1) / 10:.1f}" for i in range(10))
#: Upper bounds of the buckets of draft lengths, each included; one without a bound follows.
LENGTH_BOUNDS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)


@dataclass(frozen=True)
class Family:
    """One family: its help, its label if it has one, and that label's values if they are fixed."""

    text: str
    label: str | None = None
    values: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels, as Prometheus asks for them."""
        return () if self.label is None else (self.label,)


COUNTERS = {
    "requests_without_drafts": Family("Requests served without drafts, by reason.", "reason"),
    "requests_with_one_path": Family(
        "Requests verified along one path where several candidates are asked for, by reason.",
        "reason",
    ),
    "table_saves": Family("Saves of the STAND table to table_path, by result.", "result"),
    "rows_without_law": Family("Target rows that were no law (NaN, or no finite logit).", "kind"),
    "length_stops": Family(
        "Why drafts ended, by reason.",
        "reason",
        ("does_not_pay", "no_context", "draft_length", "limit", "off"),
    ),
    "draft_tokens": Family(
        "Drafted tokens that were verified, by fate.", "fate", ("accepted", "wasted")
    ),
    "emitted_tokens": Family("Tokens emitted by decode steps of requests that specproof serves."),
    "predicted_acceptances": Family(
        "Predicted acceptance, summed over the judged drafts, by its decile.", "predicted", DECILES
    ),
    "realised_acceptances": Family(
        "Judged drafts that were accepted, by decile of their predicted acceptance.",
        "predicted",
        DECILES,
    ),
    "judged_drafts": Family(
        "Drafts of which it was seen whether they are accepted, by decile of their predicted "
        "acceptance.",
        "predicted",
        DECILES,
    ),
    "length_seconds": Family(
        "Seconds of decoding, by state of the length policy.", "state", ("on", "off", "trial")
    ),
}

# One engine's gauge cannot be added to another's, so each is shown for itself.
GAUGES = {
    "length_threshold": Family(
        "Survival probability below which a drafted token is not verified now.", "engine"
    ),
    "achieved_speedup": Family(
        "Tokens per second over those of plain decoding, by the length policy's estimate.", "engine"
    ),
    "tokens_per_second": Family("Tokens per second achieved lately.", "engine"),
}

LENGTHS = "draft_length"
LENGTHS_TEXT = "Drafted tokens verified, of each request in each step."
