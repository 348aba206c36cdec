"""What a cubin takes of the machine: registers, local memory, spills, static shared memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cute_kernels.build import sass
from cute_kernels.build.errors import BuildError

USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
STORE_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # modifier of STL; 4 without one


@dataclass(frozen=True)
class Resources:
    """entry: symbol of the one kernel in the cubin.
    registers: per thread. static_shared: bytes per CTA, what the system reserves included.
    local_bytes: stack frame and local memory per thread.
    spill_bytes: bytes that the spill stores in the code write, each counted once.
    local_instructions: loads and stores of local memory in the code, spills or not.
    """

    entry: str
    registers: int
    static_shared: int
    local_bytes: int
    spill_bytes: int
    local_instructions: int

    @property
    def complaint(self) -> str:
        """Why the build refuses this cubin; "" where nothing lies in local memory."""
        if not (self.local_bytes or self.spill_bytes or self.local_instructions):
            return ""
        return (
            f"uses local memory: {self.spill_bytes} bytes of spill stores, {self.local_bytes} bytes a "
            f"thread, {self.local_instructions} instructions, {self.registers} registers"
        )


def read(cubin: Path) -> Resources:
    """Resources of a cubin that holds exactly one kernel."""
    usage = USAGE.findall(sass.run_tool("cuobjdump", "-res-usage", str(cubin)))
    if len(usage) != 1:
        names = ", ".join(match[0] for match in usage) or "none"
        raise BuildError(f"a cubin must hold exactly one kernel; {cubin.name} holds {names}")
    entry, registers, stack, shared, local = usage[0]
    in_local = [i for i in sass.disassemble(cubin) if sass.class_of(i.opcode) == "local"]
    return Resources(
        entry=entry,
        registers=int(registers),
        static_shared=int(shared),
        local_bytes=int(stack) + int(local),
        spill_bytes=sum(store_bytes(i.opcode) for i in in_local if "Spill" in i.rest),
        local_instructions=len(in_local),
    )


def store_bytes(opcode: str) -> int:
    """Bytes that a store to local memory writes per thread; 0 for a load."""
    base, *modifiers = opcode.split(".")
    if base != "STL":
        return 0
    return next((STORE_BYTES[modifier] for modifier in modifiers if modifier in STORE_BYTES), 4)
