"""Pure per-lane instructions as NumPy source: `translate` gives one expression for each destination.

Which instructions these are stands in the tables of the alu_* modules; functions that generated code calls are
collected in NAMESPACE. Generated code must run with NumPy's floating-point warnings off
(`numpy.errstate(all="ignore")`): overflow and NaN are results, not errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cute_kernels.emulator import (
    alu_bits,
    alu_compare,
    alu_convert,
    alu_float,
    alu_integer,
    alu_move,
    conversions,
    float_ops,
    integer_ops,
)
from cute_kernels.emulator.alu_code import Code, Definitions, Names, Translator
from cute_kernels.emulator.ptx_types import Instruction

__all__ = ["NAMESPACE", "TRANSLATORS", "Names", "translate"]

TRANSLATORS: dict[str, Translator] = {
    **alu_integer.TRANSLATORS,
    **alu_bits.TRANSLATORS,
    **alu_compare.TRANSLATORS,
    **alu_move.TRANSLATORS,
    **alu_convert.TRANSLATORS,
}
# Opcodes that integers and floating point share: the type decides.
for _opcode, _translator in alu_float.TRANSLATORS.items():
    _integer = TRANSLATORS.get(_opcode)
    TRANSLATORS[_opcode] = alu_float.by_type(_translator, _integer) if _integer else _translator

NAMESPACE: dict[str, Any] = {
    "np": np,
    **{f"u{bits}": np.dtype(f"u{bits // 8}").type for bits in (8, 16, 32, 64)},
    **{f"i{bits}": np.dtype(f"i{bits // 8}").type for bits in (8, 16, 32, 64)},
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    **integer_ops.NAMESPACE,
    **float_ops.NAMESPACE,
    **conversions.NAMESPACE,
}


def divides(instruction: Instruction) -> bool:
    """Whether it is a division or a remainder of integers."""
    return instruction.opcode in ("div", "rem") and instruction.modifiers[-1][0] in "su"


def divisor(instruction: Instruction, names: Names) -> str | None:
    """An expression for the divisor of an integer division or remainder; None for other instructions."""
    if not divides(instruction):
        return None
    return Code(instruction, names).bits(instruction.operands[2], instruction.modifiers[-1])


def translate(instruction: Instruction, names: Names) -> Definitions | None:
    """The destinations of a per-lane instruction, each with a Python expression for its new value.

    Expressions read registers as `R[index]` and give an array whose last axis is the 32 lanes, in the canonical
    dtype of the destination. All of them are to be evaluated before any is stored. None means that the
    instruction is not a per-lane one (loads, barriers, branches, ...). A per-lane opcode with a modifier, type
    or operand that is not implemented raises PtxError.
    """
    translator = TRANSLATORS.get(instruction.opcode)
    if translator is None:
        return None
    code = Code(instruction, names)
    definitions = translator(code)
    if code.modifiers:
        code.fail(f"modifier .{code.modifiers[0]} is not supported")
    return definitions
