"""Batches for tests of drafters."""

import numpy as np

from proposers import DraftRequests, VerifiedRows


def requests(
    texts: list[list[int]],
    budgets: list[int],
    *,
    handles: list[int] | None = None,
    temperature: float = 1.0,
) -> DraftRequests:
    """Texts in a token buffer whose rows are not in batch order and go on with other tokens."""
    batch = len(texts)
    rows = np.arange(batch)[::-1].copy()
    tokens = np.full((batch, max(map(len, texts)) + 3), 1, np.int32)
    for b, text in enumerate(texts):
        tokens[rows[b], : len(text)] = text
    return DraftRequests(
        tokens=tokens,
        rows=rows,
        lengths=np.array([len(text) for text in texts], np.int64),
        budgets=np.array(budgets, np.int64),
        temperatures=np.full(batch, temperature),
        top_k=np.zeros(batch, np.int64),
        top_p=np.ones(batch),
        noise_keys=np.zeros(batch, np.uint64),
        handles=np.arange(batch) if handles is None else np.array(handles, np.int64),
    )


def verified(contexts: list[list[int]], laws: list[dict[int, float]]) -> VerifiedRows:
    """Rows with a context each; laws as token -> probability, padded to the longest."""
    ends = np.cumsum([len(context) for context in contexts]).astype(np.int64)
    entries = max(map(len, laws))
    ids = np.full((len(laws), entries), -1, np.int32)
    probabilities = np.zeros((len(laws), entries), np.float32)
    for r, law in enumerate(laws):
        best = sorted(law.items(), key=lambda entry: -entry[1])
        ids[r, : len(best)] = [token for token, _ in best]
        probabilities[r, : len(best)] = [mass for _, mass in best]
    begins = ends - [len(context) for context in contexts]
    return VerifiedRows(
        np.array([x for context in contexts for x in context], np.int32),
        begins,
        ends,
        ids,
        probabilities,
    )
