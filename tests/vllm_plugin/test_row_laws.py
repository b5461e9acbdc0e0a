"""Every row has a law: softmax where there is one, and what vLLM's CPU sampler does elsewhere."""

import math

import pytest
import torch
from torch import Tensor

from vllm_plugin.row_laws import row_laws

V = 12


def row(**places: float) -> Tensor:
    made = torch.randn(V, generator=torch.Generator().manual_seed(3))
    for place, value in places.items():
        made[int(place[1:])] = value
    return made


def test_rows_with_a_law_are_their_softmax() -> None:
    z = torch.stack([row(), row(_2=-math.inf), row(_0=-math.inf)])
    assert torch.equal(row_laws(z.clone()), z.softmax(dim=-1))


@pytest.mark.parametrize(
    ("broken", "certain"),
    [
        (torch.full((V,), math.nan), 0),
        (torch.full((V,), -math.inf), 0),
        (row(_5=math.inf), 5),
        (row(_5=math.inf, _8=math.inf), 5),
        (row(_5=math.inf, _1=math.nan), 5),
    ],
)
def test_a_row_without_a_law_is_certain(broken: Tensor, certain: int) -> None:
    z = torch.stack([row(), broken, row(_2=4.0)])
    p = row_laws(z.clone())
    assert p[1].tolist() == [float(x == certain) for x in range(V)]
    for other in (0, 2):
        assert torch.equal(p[other], z[other].softmax(dim=-1))


def test_one_nan_costs_one_token() -> None:
    p = row_laws(row(_4=math.nan)[None])[0]
    assert torch.equal(p, row(_4=-math.inf).softmax(dim=-1))


def test_the_law_is_that_of_vllms_cpu_sampler() -> None:
    """Its fused kernel draws only tokens that have a probability here, and all of those."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("the kernel is the CPU build's")
    current_platform.import_kernels()
    for broken in (
        torch.full((V,), math.nan),
        torch.full((V,), -math.inf),
        row(_5=math.inf, _8=math.inf),
        row(_4=math.nan),
    ):
        seeds = torch.arange(4000)
        drawn = torch.ops._C.fused_gumbel_argmax(broken.expand(4000, V).contiguous(), seeds)
        possible = row_laws(broken[None])[0] > 0.01
        assert set(torch.nonzero(possible).flatten().tolist()) <= set(drawn.tolist())
        assert (row_laws(broken[None])[0][drawn] > 0).all()
