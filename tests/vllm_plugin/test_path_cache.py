"""Copies between blocks of a KV cache: of the tokens asked for, in whatever layout a block has."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vllm_plugin.path_cache import KeyValueCopies, slots_of_block

HEADS, SIZE = 2, 4  # key and value heads of a token, elements of each


class Scattered:
    """A cache whose update puts each element where a permutation of the block says."""

    def __init__(self, slots: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.places = torch.from_numpy(rng.permutation(slots * HEADS * 2 * SIZE)).view(slots, -1)

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, cache: Tensor, slot_mapping: Tensor
    ) -> None:
        blocks = cache.view(cache.shape[0], -1)
        slots = cache.shape[2]
        for k, v, at in zip(key, value, slot_mapping.tolist(), strict=True):
            blocks[at // slots, self.places[at % slots]] = torch.cat([k, v], dim=1).flatten()


class Overlapping(Scattered):
    """Two slots share an element."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.places[1, 0] = self.places[0, 0]


class Uneven(Scattered):
    """One slot has an element of another."""

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, cache: Tensor, slot_mapping: Tensor
    ) -> None:
        super().do_kv_cache_update(layer, key, value, cache, slot_mapping)
        if slot_mapping.tolist() == [0]:
            cache.view(-1)[self.places[1, 0]] = 1
        if slot_mapping.tolist() == [1]:
            cache.view(-1)[self.places[1, 0]] = 0


def a_layer(impl: Any, slots: int, dtype: torch.dtype = torch.float32, blocks: int = 6) -> Any:
    cache = torch.randn((blocks, HEADS, slots, 2 * SIZE)).to(dtype)
    return SimpleNamespace(
        impl=impl, kv_cache=cache, dtype=dtype, num_kv_heads=HEADS, head_size=SIZE
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slots", [16, 32])
def test_scattered_slots_are_found_out(slots: int, dtype: torch.dtype) -> None:
    impl = Scattered(slots)
    layer = a_layer(impl, slots, dtype)
    before = layer.kv_cache.clone()
    found = slots_of_block(layer)
    assert found is not None
    assert found.tolist() == impl.places.sort(dim=1).values.tolist()
    assert torch.equal(layer.kv_cache, before)  # tried out somewhere else


@pytest.mark.parametrize("begin", [0, 1, 5, 8, 15])
@pytest.mark.parametrize("end", [0, 1, 4, 8, 9, 16])
def test_part_of_a_block_is_copied_and_the_other_blocks_are_left_alone(
    begin: int, end: int
) -> None:
    """Within the block, slots outside the range are the source's or their own, as documented."""
    layers = [a_layer(Scattered(16), 16) for _ in range(2)]
    before = [layer.kv_cache.clone() for layer in layers]
    KeyValueCopies(layers).copy([(1, 4, begin, end), (0, 3, 0, 1)])
    places = layers[0].impl.places
    for layer, was in zip(layers, before, strict=True):
        old, new = was.view(6, -1), layer.kv_cache.view(6, -1)
        assert torch.equal(new[[0, 1, 2, 5]], old[[0, 1, 2, 5]])
        for slot, place in enumerate(places):
            if begin <= slot < end:
                assert torch.equal(new[4, place], old[1, place])
            elif 2 * (end - begin) <= 16:
                assert torch.equal(new[4, place], old[4, place])
            else:
                assert torch.equal(new[4, place], old[1, place])
        assert torch.equal(new[3, places[0]], old[0, places[0]])
        assert torch.equal(new[3, places[1:].flatten()], old[3, places[1:].flatten()])


@pytest.mark.parametrize("impl", [Overlapping(16), Uneven(16)])
def test_an_unclear_layout_is_copied_in_whole_blocks(impl: Any) -> None:
    layer = a_layer(impl, 16)
    before = layer.kv_cache.clone()
    assert slots_of_block(layer) is None
    copies = KeyValueCopies([layer])
    copies.copy([(1, 4, 3, 5), (2, 5, 0, 0), (0, 3, 15, 16)])
    assert torch.equal(layer.kv_cache[4], before[1])
    assert torch.equal(layer.kv_cache[3], before[0])
    assert torch.equal(layer.kv_cache[[0, 1, 2, 5]], before[[0, 1, 2, 5]])  # nothing to copy to 5


def test_layers_of_different_shapes_are_copied_in_whole_blocks() -> None:
    layers = [a_layer(Scattered(16), 16), a_layer(Scattered(16), 16, torch.bfloat16)]
    before = [layer.kv_cache.clone() for layer in layers]
    copies = KeyValueCopies(layers)
    assert copies.slots is None
    copies.copy([(1, 4, 3, 5)])
    for layer, was in zip(layers, before, strict=True):
        assert torch.equal(layer.kv_cache[4], was[1])
        assert torch.equal(layer.kv_cache[[0, 1, 2, 3, 5]], was[[0, 1, 2, 3, 5]])


def test_a_cache_that_layers_share_is_kept_once_and_blocks_are_cleared_in_all() -> None:
    layers = [a_layer(Scattered(16), 16), a_layer(Scattered(16), 16)]
    layers.append(SimpleNamespace(**vars(layers[0])))
    copies = KeyValueCopies(layers)
    assert len(copies.caches) == 2
    before = [layer.kv_cache.clone() for layer in layers]
    copies.clear([4, 5])
    copies.copy([])
    for layer, was in zip(layers, before, strict=True):
        assert not layer.kv_cache[4:].any()
        assert torch.equal(layer.kv_cache[:4], was[:4])


@pytest.mark.parametrize(("slots", "dtype"), [(32, torch.float32), (128, torch.bfloat16)])
def test_vllms_own_cpu_layout(slots: int, dtype: torch.dtype) -> None:
    """A copy is what writing the same keys and values there would have been."""
    cpu_attn = pytest.importorskip("vllm.v1.attention.backends.cpu_attn")
    if not hasattr(torch.ops._C, "cpu_attn_reshape_and_cache"):
        pytest.skip("vLLM was built without its CPU kernels")
    heads, size = 2, 64
    impl = object.__new__(cpu_attn.CPUAttentionBackendImpl)
    impl.attn_type, impl.kv_cache_dtype = "decoder", "auto"
    cache = torch.zeros((4, heads, slots, 2 * size), dtype=dtype)
    layer: Any = SimpleNamespace(
        impl=impl, kv_cache=cache, dtype=dtype, num_kv_heads=heads, head_size=size,
        isa=cpu_attn._get_attn_isa(dtype, slots, size), _k_scale_float=1.0, _v_scale_float=1.0,
    )  # fmt: skip
    found = slots_of_block(layer)
    assert found is not None
    assert found.shape == (slots, 2 * heads * size)

    def write(block: int, keys: Tensor, values: Tensor, begin: int, end: int) -> None:
        at = torch.arange(block * slots + begin, block * slots + end)
        impl.do_kv_cache_update(layer, keys[begin:end], values[begin:end], cache, at)

    ours, others = (torch.randn((2, slots, heads, size)).to(dtype) for _ in range(2))
    for begin, end in ((0, 1), (slots - 1, slots), (3, 12), (1, slots // 2), (0, slots)):
        write(1, *ours, 0, slots)
        for block in (2, 3):
            write(block, *others, 0, slots)
        write(3, *ours, begin, end)
        KeyValueCopies([layer]).copy([(1, 2, begin, end)])
        assert torch.equal(cache[2].view(torch.uint8), cache[3].view(torch.uint8)), (begin, end)
