"""The GPU kernels without a GPU: run by Triton's interpreter, and compiled for an H100."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

CHECKS = Path(__file__).with_name("interpreted_kernels.py")


@pytest.mark.slow
def test_interpreted_kernels_give_the_tokens_of_torch() -> None:
    """In a process of its own: Triton is interpreted only if that was said before its import."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


INTS, FLOATS = "*i64", "*fp64"
LAW = {"ids_ptr": INTS, "law_ptr": FLOATS, "u_ptr": FLOATS}
DRAWS = {"ids_ptr": INTS, "held_ptr": FLOATS, "weights_ptr": FLOATS, "sums_ptr": FLOATS}
TABLE = {"p_ptr": "*fp32", "stride": "i32", "vocabulary": "i32"}
ROWS = {"count_rows": "i32", "rows_ptr": INTS}
SHAPE = {"E": 10, "EB": 16}


def _kernels() -> list[tuple[str, dict[str, str], dict[str, Any]]]:
    node = {
        **TABLE, **ROWS, **LAW, "candidates_ptr": INTS, "accepted_ptr": INTS,
        "emit_rows_ptr": INTS, "held_ptr": FLOATS, "weights_ptr": FLOATS,
    }  # fmt: skip
    chain = {
        **TABLE, **LAW, "first_ptr": INTS, "lengths_ptr": INTS, "bonus_ptr": "*i8",
        "tokens_ptr": INTS, "kept_ptr": INTS, "emit_rows_ptr": INTS, "last_ids_ptr": INTS,
        "held_ptr": FLOATS, "weights_ptr": FLOATS, "K": "i32",
    }  # fmt: skip
    draw = {**TABLE, **ROWS, **DRAWS, "u_ptr": FLOATS, "tokens_ptr": INTS, "S": "i32"}
    return [
        *(("_nodes_kernel", node, {"RULE": r, "K": 4, "STEPS": 52, **SHAPE}) for r in range(6)),
        ("_chains_kernel", chain, {"BLOCK_RULE": True, **SHAPE}),
        ("_chains_kernel", chain, {"BLOCK_RULE": False, **SHAPE}),
        ("_sums_kernel", {**TABLE, **ROWS, **DRAWS}, {"E": 10, "BLOCK": 1024}),
        ("_draw_kernel", draw, {"SB": 256, "BLOCK": 1024, **SHAPE}),
    ]


@pytest.mark.parametrize(("name", "arguments", "constants"), _kernels())
def test_kernels_compile_for_a_gpu(
    name: str, arguments: dict[str, str], constants: dict[str, Any]
) -> None:
    """To machine code of an H100 by Triton's own compiler; it is not run. No atomics are in it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vllm_plugin import emission_triton, rules_triton

    kernel = getattr(emission_triton, name, None) or getattr(rules_triton, name)
    names = kernel.arg_names
    assert set(names) == {*arguments, *constants}
    source = ASTSource(
        fn=kernel,
        signature={n: arguments.get(n, "constexpr") for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert len(compiled.asm["cubin"]) > 0
    assert "atom" not in compiled.asm["ptx"]
