"""tcgen05.ld, st and their waits (PTX ISA, "Tensor Memory Data Movement")."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import tmem_access
from cute_kernels.emulator.clocks import READY, TENSOR, TENSOR_READY
from cute_kernels.emulator.handlers.registry import address, handles, items, read, uniform
from cute_kernels.emulator.handlers.tensor_memory import cells, known_now, read_cells, whole_warp, write_cells
from cute_kernels.emulator.ptx import Immediate, Instruction, PtxError, Register
from cute_kernels.emulator.registers import Pending
from cute_kernels.emulator.shadow import Cells, Region
from cute_kernels.emulator.warp import Mask, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Handler, Program

_SHAPE = re.compile(r"(32x32b|16x64b|16x128b|16x256b|16x32bx2)$")


class _Registers:
    """The cells of a tcgen05.ld or st; its half-split immediate is taken off the operands."""

    def __init__(self, instruction: Instruction, operands: list[Any]) -> None:
        self._shape, self.map = _map(instruction, operands)
        self._touched: dict[tuple[int, int], Region] = {}

    def locate(self, warp: Warp, mask: Mask, where: NDArray[np.uint64]) -> tuple[int, int, Region]:
        """The first lane and column, and all cells."""
        taddr = uniform(where, mask, "the tensor memory address")
        at, column = self.map, taddr & 0xFFFF
        lane = tmem_access.warp_lane(self._shape, taddr >> 16, warp.index)
        columns = at.columns + column
        if at.packed:
            columns = np.concatenate([columns, columns + 1])
        memory = warp.cta.tensor_memory()
        found = self._touched.get((lane, column))
        if found is None:
            memory.check_columns(columns, "tcgen05.ld/st")
            lanes = np.concatenate([at.lanes] * 2) if at.packed else at.lanes
            found = self._touched[lane, column] = memory.shadow.region(cells(lanes + lane, columns))
        elif isinstance(found.where, Cells):
            memory.check_columns(found.where.columns, "tcgen05.ld/st")
        else:
            memory.check_columns(columns, "tcgen05.ld/st")
        return lane, column, found


def _map(instruction: Instruction, operands: list[Any]) -> tuple[str, tmem_access.RegisterMap]:
    shape = next((m for m in instruction.modifiers if _SHAPE.match(m)), "")
    num = next((int(m[1:]) for m in instruction.modifiers if re.match(r"x\d+$", m)), 0)
    packed = "pack::16b" in instruction.modifiers or "unpack::16b" in instruction.modifiers
    if not shape or not num or "red" in instruction.modifiers:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    split = 0
    if shape == "16x32bx2":
        immediate = next(o for o in operands if isinstance(o, Immediate))
        operands.remove(immediate)
        split = immediate.integer()
    return shape, tmem_access.register_map(shape, num, packed, split)


@handles("tcgen05.ld")
def _ld(instruction: Instruction, program: Program) -> Handler:
    operands = list(instruction.operands)
    cells_of = _Registers(instruction, operands)
    at = cells_of.map
    destinations = items(operands[0])
    where = address(operands[1])
    if len(destinations) != len(at.lanes) or not all(isinstance(d, Register) for d in destinations):
        raise PtxError(f"{instruction.name} with {len(destinations)} destinations; it has {len(at.lanes)}")

    numbered = [(i, destination.index) for i, destination in enumerate(destinations)]
    written = program.with_copies(index for _, index in numbered)

    def run(warp: Warp, mask: Mask) -> None:
        whole_warp(warp, mask, instruction.name)
        lane, column, touched = cells_of.locate(warp, mask, where(warp))
        slot, time = warp.cta.slot(warp.index, TENSOR), warp.next_time(TENSOR)
        read_cells(warp, warp.cta, touched, known_now(warp), slot, time)
        loaded = _Load(warp, at, lane, column)
        registers = warp.registers
        for i, index in numbered:
            registers[index] = _Result(loaded, i)
        warp.tensor_loads |= written
        schedule = warp.machine.engine.schedule
        if schedule == "eager" or (schedule == "random" and warp.machine.rng.random() < 0.5):
            loaded.sample()
        warp.machine.report.count("tcgen05.ld")

    return run


class _Load:
    """A tcgen05.ld under way; its values are taken once, some time between issue and wait."""

    def __init__(self, warp: Warp, at: tmem_access.RegisterMap, lane: int, column: int) -> None:
        self._words = warp.cta.tensor_memory().words
        self._at, self._lane, self._column = at, lane, column
        self._values: list[NDArray[np.uint32]] = []  # of each register

    def sample(self) -> list[NDArray[np.uint32]]:
        if not self._values:
            self._values = [*tmem_access.load(self._words, self._at, self._lane, self._column)]
        return self._values


class _Result(Pending):
    """What one register will hold."""

    __slots__ = ("_i", "_load")
    of = None

    def __init__(self, load: _Load, i: int) -> None:
        self._load, self._i = load, i

    def compute(self) -> NDArray[np.uint32]:
        return self._load.sample()[self._i]


@handles("tcgen05.wait::ld")
def _wait_ld(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        whole_warp(warp, mask, instruction.name)
        finish_loads(warp)

    return run


def finish_loads(warp: Warp) -> None:
    """The warp's tcgen05.ld so far are done: their registers hold values."""
    registers = warp.registers
    for i in warp.tensor_loads:
        value = registers[i]
        if type(value) is not np.ndarray and isinstance(value, Pending) and value.of is None:
            registers[i] = value.compute()
    warp.tensor_loads.clear()
    _complete(warp)


@handles("tcgen05.wait::st")
def _wait_st(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        whole_warp(warp, mask, instruction.name)
        for land in warp.tensor_stores:
            land()
        warp.tensor_stores.clear()
        _complete(warp)

    return run


def _complete(warp: Warp) -> None:
    """The warp's tcgen05.ld and st so far are done, as far as its own next tcgen05 operations are concerned.

    Loads and stores share a clock, so waiting for the one kind while the other is under way must not cover both."""
    if not warp.tensor_loads and not warp.tensor_stores:
        slot = warp.cta.slot(warp.index, TENSOR)
        warp.order.changed()
        warp.clock[TENSOR_READY, slot] = warp.times[TENSOR]
        if "tcgen05.ld" in warp.machine.tolerate:
            warp.clock[READY, slot] = warp.times[TENSOR]


@handles("tcgen05.st")
def _st(instruction: Instruction, program: Program) -> Handler:
    operands = list(instruction.operands)
    cells_of = _Registers(instruction, operands)
    at = cells_of.map
    where = address(operands[0])
    sources = [read(item) for item in items(operands[1])]
    if len(sources) != len(at.lanes):
        raise PtxError(f"{instruction.name} with {len(sources)} sources; it has {len(at.lanes)}")

    def run(warp: Warp, mask: Mask) -> None:
        whole_warp(warp, mask, instruction.name)
        lane, column, touched = cells_of.locate(warp, mask, where(warp))
        slot, time = warp.cta.slot(warp.index, TENSOR), warp.next_time(TENSOR)
        write_cells(warp, warp.cta, touched, known_now(warp), slot, time)
        registers = np.stack([source(warp) for source in sources])
        land = partial(tmem_access.store, warp.cta.tensor_memory().words, at, lane, column, registers)
        if warp.machine.engine.schedule == "eager":
            land()
        warp.tensor_stores.append(land)
        warp.machine.events += 1
        warp.machine.report.count("tcgen05.st")

    return run
