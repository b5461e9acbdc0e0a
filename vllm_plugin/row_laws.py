"""From a row's processed logits to its law, defined for every row."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_plugin import metrics


def row_laws(processed: Tensor) -> Tensor:
    """``softmax(processed)``, and for a row that has none what vLLM's CPU sampler makes of it.

    processed (N, V) float32. A NaN counts as -inf; a row with +inf is certain of the first of them;
    a row of nothing but -inf is certain of token 0. So a request whose model fails goes on with a
    defined text, and neither the rules nor its neighbours ever meet a NaN. Counted as
    ``specproof:rows_without_law_total``.
    """
    p = processed.softmax(dim=-1)
    lawless = p[:, 0].isnan()  # a softmax is NaN everywhere or nowhere
    if lawless.any():
        metrics.count("rows_without_law", "any", "a target row has NaN, inf or no finite logit")
        rows = processed[lawless]
        rows = rows.masked_fill(rows.isnan(), -torch.inf)
        first = rows.argmax(dim=-1, keepdim=True)
        certain = rows.gather(1, first).isinf()
        point = torch.full_like(rows, -torch.inf).scatter_(1, first, 0.0)
        p[lawless] = torch.where(certain, point, rows).softmax(dim=-1)
    return p
