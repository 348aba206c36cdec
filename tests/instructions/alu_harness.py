"""Evaluates per-lane PTX without the machine: parse a body, translate each instruction, compute on whole arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import alu, ptx

LANES = 32
_DTYPES = {"pred": np.bool_, "b8": np.uint16, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64}
_TYPES = {"p": "pred", "o": "b8", "h": "b16", "r": "b32", "d": "b64"}


class Names:
    """The core's side of translation: constants by name, special registers and symbols with made-up values."""

    def __init__(self) -> None:
        self.space: dict[str, Any] = dict(alu.NAMESPACE)

    def constant(self, value: Any) -> str:
        name = f"K{len(self.space)}"
        self.space[name] = value
        return name

    def special(self, name: str) -> str:
        wide = name in ("%clock64", "%globaltimer")
        return self.constant(np.arange(LANES, dtype=np.uint64 if wide else np.uint32))

    def symbol(self, name: str) -> str:
        return self.constant(np.full(LANES, 0x1000 + len(name), np.uint64))

    def cvta(self, space: str, to_generic: bool, address: str) -> str:
        window = self.constant(np.full(LANES, {"shared": 1 << 40}.get(space, 0), np.uint64))
        return f"({address} {'+' if to_generic else '-'} {window})"


def program(body: str, declarations: str = "") -> ptx.Kernel:
    """The kernel whose code is `body`, with registers %p0-99, %o (b8), %h (b16), %r (b32), %d (b64) to name."""
    ranges = "".join(f".reg .{type} %{letter}<100>;\n" for letter, type in _TYPES.items())
    head = ".version 9.0\n.target sm_100a\n.address_size 64\n.visible .entry k() {\n"
    text = f"{head}{ranges}{declarations}\n{body}\n}}"
    return ptx.parse(text).kernels["k"]


def run(body: str, values: Mapping[str, Any], declarations: str = "") -> dict[str, NDArray[Any]]:
    """All registers after `body`, given `values` by register name: arrays of one length, in a register's own dtype.

    Lanes are arranged as (warps, 32), so that leading axes are exercised too. Results are flat again.
    """
    kernel = program(body, declarations)
    count = max((len(v) for v in values.values()), default=LANES)
    rows = -(-count // LANES)
    registers: list[Any] = [None] * len(kernel.registers)
    for name, value in values.items():
        if name not in kernel.register_names:
            continue
        index = kernel.register_names.index(name)
        lanes: NDArray[Any] = np.zeros(rows * LANES, _DTYPES[kernel.registers[index]])
        lanes[:count] = np.asarray(value).astype(lanes.dtype)
        registers[index] = lanes.reshape(rows, LANES)
    names = Names()
    for instruction in kernel.instructions:
        definitions = alu.translate(instruction, names)
        assert definitions is not None, f"{instruction.text} is no per-lane instruction"
        with np.errstate(all="ignore"):
            results = [eval(text, names.space, {"R": registers}) for _, text in definitions]
        for (register, text), result in zip(definitions, results, strict=True):
            dtype = _DTYPES[kernel.registers[register.index]]
            assert result.dtype == dtype, (
                f"{instruction.text}: {text} gives {result.dtype}, not {dtype.__name__}"
            )
            assert result.shape[-1:] == (LANES,), f"{instruction.text}: {text} gives shape {result.shape}"
            registers[register.index] = result
    shape = (rows, LANES)
    return {
        name: np.broadcast_to(value, shape).reshape(-1)[:count]
        for name, value in zip(kernel.register_names, registers, strict=True)
        if value is not None
    }


def translate(instruction: str) -> Any:
    """What alu.translate gives for one instruction."""
    return alu.translate(program(instruction).instructions[0], Names())
