"""Compiled kernels as tests read them: the manifest's entry and the PTX."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from cute_kernels.build.manifest import read
from cute_kernels.build.variant import Variant
from cute_kernels.emulator import ptx
from tests.building import Request, build

ELEMENT_BYTES = {"b4x16_p64": 0.5, "u8": 1, "bf16": 2, "i32": 4, "f32": 4}


class Compiled(NamedTuple):
    """A kernel's entry in the manifest, and its PTX as read."""

    entry: dict[str, Any]
    kernel: ptx.Kernel

    def all(self, *prefix: str) -> list[int]:
        """Places of the instructions whose name begins with these parts."""
        return [
            at
            for at, i in enumerate(self.kernel.instructions)
            if (i.opcode, *i.modifiers)[: len(prefix)] == prefix
        ]

    def constant(self, at: int, operand: int) -> int:
        """The immediate that an operand of the instruction at `at` is, or was last set to or joined with before it."""
        value = self.kernel.instructions[at].operands[operand]
        if isinstance(value, ptx.Register):
            sets = (i for i in self.kernel.instructions[:at] if i.opcode in ("mov", "or"))
            value = [i for i in sets if i.operands[0] == value][-1].operands[-1]
        assert isinstance(value, ptx.Immediate), value
        return value.integer()

    def offset(self, at: int) -> int:
        """How far into shared memory the address that is the first operand of the instruction at `at` lies."""
        address = self.kernel.instructions[at].operands[0]
        assert isinstance(address, ptx.Address), address
        adds = [
            i for i in self.kernel.instructions[:at] if i.opcode == "add" and i.operands[0] == address.base
        ]
        if not adds:
            return address.offset
        added = adds[-1].operands[2]
        assert isinstance(added, ptx.Immediate), added
        return address.offset + added.integer()

    def loop(self, at: int) -> range:
        """The innermost loop around an instruction."""
        jumps = ((i.target, end) for end, i in enumerate(self.kernel.instructions) if i.target is not None)
        loops = [range(start, end + 1) for start, end in jumps if start <= at <= end]
        return min(loops, key=len)

    def count(self, places: range, *prefix: str) -> int:
        """How many of these instructions lie in a loop."""
        return sum(at in places for at in self.all(*prefix))


def compile_all(out: Path, arch: str, only: str) -> dict[str, Compiled]:
    """Builds the SM100 variants of a family, or of a name; by name."""
    result = build(Request(out, archs=(arch,), packages=("sm100",), only=only), say=lambda line: None)
    assert result.failures == {}
    entries = {e["name"]: e for e in read(out)}
    return {
        name: Compiled(e, ptx.parse((out / e["ptx"]).read_text()).kernels[e["entry"]])
        for name, e in entries.items()
    }


def box_bytes(variant: Variant, *names: str) -> float:
    """Bytes that boxes of these tensor maps bring together."""
    specs = [p.tensor_map for p in variant.params if p.name in names and p.tensor_map is not None]
    assert len(specs) == len(names)
    return sum(math.prod(spec.box) * ELEMENT_BYTES[spec.dtype] for spec in specs)
