"""Kernels of vllm_plugin run by Triton's interpreter, on tensors in main memory."""

import importlib
import os
import sys
from types import ModuleType
from typing import Any


def interpreted(*names: str) -> list[ModuleType]:
    """Fresh modules of vllm_plugin whose kernels are interpreted, in the order of their names.

    The interpreter is chosen when a kernel is decorated, so the modules are loaded anew, and those
    in ``sys.modules`` stay what they were.
    """
    _repair()
    names = tuple(f"vllm_plugin.{name}" for name in names)
    before = {name: sys.modules.pop(name, None) for name in names}
    environment = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
        if environment is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = environment


def _repair() -> None:
    """Triton 3.9's interpreter gives a comparison of scalars the type of its operands.

    The result is then refused by & with a block of booleans, or as a mask.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    original = InterpreterBuilder.binary_op
    if getattr(original, "repaired", False):
        return

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        result = original(self, lhs, rhs, op)
        if result.data.dtype == np.bool_:
            result.dtype = tl.int1
        return result

    binary_op.repaired = True  # type: ignore[attr-defined]
    InterpreterBuilder.binary_op = binary_op
