"""Where a kernel's parameters and variables lie in their state spaces."""

from __future__ import annotations

from cute_kernels.emulator.ptx import Kernel, Module


class Layout:
    """Addresses of a kernel with `dynamic` bytes of dynamic shared memory, whose shared window begins with `reserved`.

    symbols: state space and address by name; variables of the module have theirs at launch.
    """

    def __init__(self, module: Module, kernel: Kernel, dynamic: int, reserved: int) -> None:
        self.symbols: dict[str, tuple[str, int]] = {}
        self.param_offsets: list[int] = []
        self.param_bytes = self._lay_out_params(kernel)
        self.shared_bytes = self._lay_out_shared(kernel, dynamic, reserved)
        self.local_bytes = self._lay_out_local(kernel)
        for variable in module.variables.values():
            if variable.space in ("global", "const"):
                self.symbols.setdefault(variable.name, (variable.space, 0))

    def _lay_out_params(self, kernel: Kernel) -> int:
        at = 0
        for param in kernel.params:
            at = -(-at // param.align) * param.align
            self.param_offsets.append(at)
            self.symbols[param.name] = ("param", at)
            at += param.nbytes
        return at

    def _lay_out_shared(self, kernel: Kernel, dynamic: int, reserved: int) -> int:
        at = reserved
        for name, (nbytes, align) in kernel.shared.items():
            at = -(-at // align) * align
            self.symbols[name] = ("shared", at)
            at += nbytes
        for name, align in kernel.dynamic_shared.items():
            first = -(-at // max(align, 16)) * max(align, 16)
            self.symbols[name] = ("shared", first)
        if kernel.dynamic_shared:
            at = min(self.symbols[name][1] for name in kernel.dynamic_shared)
        return -(-(at + dynamic) // 16) * 16

    def _lay_out_local(self, kernel: Kernel) -> int:
        at = 0
        for name, (nbytes, align) in kernel.local.items():
            at = -(-at // align) * align
            self.symbols[name] = ("local", at)
            at += nbytes
        return at


def narrowest_shared_store(kernel: Kernel) -> int:
    """4 bytes, or the narrowest unit in which a kernel stores to memory that may be shared."""
    widths = [4]
    for instruction in kernel.instructions:
        if instruction.opcode == "st" and not {"global", "local", "param", "bulk"} & set(
            instruction.modifiers
        ):
            widths.append(int(instruction.modifiers[-1].lstrip("bsuf")) // 8)
    return max(1, min(widths))
