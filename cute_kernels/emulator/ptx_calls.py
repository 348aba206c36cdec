"""Calls of functions, replaced by the functions' code: so the emulator needs no stack.

Each place that calls a function gets a copy of it, with registers, local variables and branch tables of its own. What
the caller and the function hand each other in `.param` variables lies in local memory instead; `ret` becomes a branch
behind the copy. What calls itself, functions whose code is not in the module and calls through a pointer stay
calls, which the emulator refuses by name when they are executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cute_kernels.emulator.ptx_types import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Module,
    Negated,
    Operand,
    Pair,
    Register,
    Special,
    Symbol,
    Vector,
)


def inline(kernel: Kernel, module: Module) -> Kernel:
    """The kernel with the code of the functions that it calls, however deep; the kernel itself where it calls none."""
    if not any(_function(one, module) for one in kernel.instructions):
        return kernel
    whole = replace(
        kernel,
        instructions=[],
        registers=[],
        register_names=[],
        local={},
        call_params={},
        labels={},
        branch_targets={},
    )
    whole.shared, whole.dynamic_shared = dict(kernel.shared), dict(kernel.dynamic_shared)
    _Copy(whole, kernel, module, (), {}).add()
    return whole


def _function(instruction: Instruction, module: Module) -> Kernel | None:
    """The function that an instruction calls, if the module has its code."""
    names = [operand.name for operand in instruction.operands if isinstance(operand, Symbol)]
    found = module.functions.get(names[0]) if instruction.opcode == "call" and names else None
    return found if found is not None and found.instructions else None


def _lists(instruction: Instruction) -> tuple[list[Operand], list[Operand]]:
    """What a call gives the function, and what it takes back."""
    at = next(i for i, operand in enumerate(instruction.operands) if isinstance(operand, Symbol))
    given, back = instruction.operands[at + 1 : at + 2], instruction.operands[:at]
    return [item for o in given for item in _items(o)], [item for o in back for item in _items(o)]


def _items(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vector) else (operand,)


class _Copy:
    """One function's code on its way into a kernel.

    callers: the functions around it, outermost first; none for the kernel itself. names: what its parameters and what
    it returns are called in the kernel, local variables all.
    """

    def __init__(
        self, whole: Kernel, body: Kernel, module: Module, callers: tuple[str, ...], names: dict[str, str]
    ) -> None:
        self.whole, self.body, self.module, self.callers = whole, body, module, callers
        self.first_register = len(whole.registers)
        mark = f"{body.name}@{len(whole.instructions)}:" if callers else ""
        own = (*body.local, *body.call_params, *body.branch_targets)
        self.names = {name: mark + name for name in own} | names
        self.in_local = {*names.values(), *(self.names[name] for name in self._handed_over())}
        whole.registers += body.registers
        whole.register_names += [mark + name for name in body.register_names]
        for name, size in body.local.items():
            whole.local[self.names[name]] = size
        for name, size in body.call_params.items():
            kept = whole.local if self.names[name] in self.in_local else whole.call_params
            kept[self.names[name]] = size
        if callers:
            whole.shared |= body.shared
            whole.dynamic_shared |= body.dynamic_shared

    def _callee(self, instruction: Instruction) -> Kernel | None:
        """The function to copy in place of a call."""
        found = _function(instruction, self.module)
        if found is None or found.name in (*self.callers, self.body.name):
            return None
        given, back = _lists(instruction)
        fits = (len(given), len(back)) == (len(found.params), len(found.returned))
        return found if fits and all(isinstance(item, Symbol) for item in (*given, *back)) else None

    def _handed_over(self) -> Iterator[str]:
        """The `.param` variables of this function's calls that are copied."""
        for instruction in self.body.instructions:
            if self._callee(instruction) is not None:
                yield from (
                    item.name for part in _lists(instruction) for item in part if isinstance(item, Symbol)
                )

    def add(self) -> None:
        """Adds the code to the kernel's, and leads its branches to where their targets are now."""
        whole, body, starts = self.whole, self.body, []
        branches: list[tuple[int, int]] = []  # an instruction of the kernel, and its target in the function
        for at, instruction in enumerate(body.instructions):
            starts.append(len(whole.instructions))
            callee = self._callee(instruction)
            if callee is not None:
                if instruction.guard is not None:
                    branches.append((len(whole.instructions), at + 1))
                    self._branch(instruction, not instruction.guard_negated)
                given, back = _lists(instruction)
                told = zip((*callee.params, *callee.returned), (*given, *back), strict=True)
                names = {
                    param.name: self.names[item.name] for param, item in told if isinstance(item, Symbol)
                }
                _Copy(whole, callee, self.module, (*self.callers, body.name), names).add()
            elif instruction.opcode == "ret" and self.callers:
                branches.append((len(whole.instructions), len(body.instructions)))
                self._branch(instruction, instruction.guard_negated)
            else:
                if instruction.target is not None:
                    branches.append((len(whole.instructions), instruction.target))
                whole.instructions.append(self._moved(instruction))
        starts.append(len(whole.instructions))
        for place, target in branches:
            whole.instructions[place] = replace(whole.instructions[place], target=starts[target])
        for name, targets in body.branch_targets.items():
            whole.branch_targets[self.names[name]] = tuple(starts[target] for target in targets)
        if not self.callers:
            whole.labels = {label: starts[at] for label, at in body.labels.items()}

    def _branch(self, instruction: Instruction, negated: bool) -> None:
        """A branch, whose target is filled in later, in place of an instruction or ahead of it."""
        moved = self._moved(instruction)
        self.whole.instructions.append(
            replace(moved, opcode="bra", modifiers=(), operands=(Symbol("behind"),), guard_negated=negated)
        )

    def _moved(self, instruction: Instruction) -> Instruction:
        operands = tuple(map(self._operand, instruction.operands))
        modifiers = instruction.modifiers
        if instruction.opcode in ("ld", "st") and any(self._is_local(operand) for operand in operands):
            modifiers = tuple("local" if m.startswith("param") else m for m in modifiers)
        guard = instruction.guard and self._register(instruction.guard)
        return replace(instruction, operands=operands, modifiers=modifiers, guard=guard)

    def _is_local(self, operand: Operand) -> bool:
        base = operand.base if isinstance(operand, Address) else None
        return isinstance(base, Symbol) and base.name in self.in_local

    def _register(self, register: Register) -> Register:
        return register._replace(index=register.index + self.first_register)

    def _operand(self, operand: Operand) -> Operand:
        if isinstance(operand, Register):
            return self._register(operand)
        if isinstance(operand, Symbol):
            return operand._replace(name=self.names.get(operand.name, operand.name))
        if isinstance(operand, Vector):
            return Vector(tuple(map(self._operand, operand.items)))
        if isinstance(operand, Pair):
            return Pair(self._operand(operand.first), self._operand(operand.second))
        if isinstance(operand, Negated):
            return Negated(self._operand(operand.value))
        if isinstance(operand, Address):
            base = self._operand(operand.base)
            assert isinstance(base, (Register, Symbol, Immediate, Special))
            coordinates = operand.coordinates and tuple(map(self._operand, operand.coordinates))
            return operand._replace(
                base=base, coordinates=coordinates, extra=tuple(map(self._operand, operand.extra))
            )
        return operand
