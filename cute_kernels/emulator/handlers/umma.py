"""tcgen05.mma, commit and shift (PTX ISA, "Matrix Multiply and Accumulate Operations using tcgen05")."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import umma, umma_layouts, umma_operands, umma_scales
from cute_kernels.emulator.clocks import ASYNC, PIPE, READY, Clock
from cute_kernels.emulator.cta import TMEM_COLUMNS, Cta
from cute_kernels.emulator.engine import Operation
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.handlers.cta_pairs import cta_group, pair
from cute_kernels.emulator.handlers.registry import active, address, handles, items, read
from cute_kernels.emulator.handlers.tensor_memory import (
    cells,
    one_lane,
    pipe_view,
    read_cells,
    read_operand,
    submit,
    write_cells,
)
from cute_kernels.emulator.memory import OFFSET_MASK
from cute_kernels.emulator.ptx import Address, Immediate, Instruction, PtxError, Vector
from cute_kernels.emulator.shadow import Cells, Region, Where, region_of
from cute_kernels.emulator.shared_chunks import Chunks, chunks_at
from cute_kernels.emulator.umma_descriptors import (
    InstructionDescriptor,
    MatrixDescriptor,
    decode_instruction_descriptor,
    decode_matrix_descriptor,
)
from cute_kernels.emulator.warp import Mask, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.mbarrier import MBarrier
    from cute_kernels.emulator.program import Handler, Program
    from cute_kernels.emulator.umma_layouts import Block

_SCALE_VECTORS = ("block16", "block32", "scale_vec::1X", "scale_vec::2X", "scale_vec::4X")


@handles("tcgen05.mma")
def _mma(instruction: Instruction, program: Program) -> Handler:
    modifiers = instruction.modifiers
    for refused in ("sp", "ws", "ashift"):
        if refused in modifiers:
            raise PtxError(f"the instruction {instruction.name} is not modelled (.{refused})")
    kind = next(m.removeprefix("kind::") for m in modifiers if m.startswith("kind::"))
    vector = next((m for m in modifiers if m in _SCALE_VECTORS), "")
    group = cta_group(instruction, program)
    operands = list(instruction.operands)
    where_d = address(operands[0])
    a_in_tensor_memory = isinstance(operands[1], Address)
    source_a = address(operands[1]) if a_in_tensor_memory else read(operands[1], "b64")
    source_b = read(operands[2], "b64")
    descriptor = read(operands[3])
    rest = operands[4:]
    scales = [address(rest.pop(0)) for _ in range(2)] if "block_scale" in modifiers else []
    disabled = [read(item) for item in items(rest.pop(0))] if rest and isinstance(rest[0], Vector) else []
    enabled = read(rest.pop(0), "pred")
    input_scale = rest[0].integer() if rest and isinstance(rest[0], Immediate) else 0

    def run(warp: Warp, mask: Mask) -> None:
        lane = one_lane(mask, instruction.name)

        def value(source: Any) -> int:
            return int(source(warp)[lane])

        if any(value(item) for item in disabled):
            raise PtxError("tcgen05.mma with disabled output lanes is not modelled")
        d = decode_instruction_descriptor(value(descriptor), kind, group, vector, a_in_tensor_memory)
        job = _Product(warp, mask, d, pair(warp, group), value(where_d), bool(value(enabled)), input_scale)
        job.take_b(decode_matrix_descriptor(value(source_b)))
        if a_in_tensor_memory:
            job.take_a_from_tensor_memory(value(source_a))
        else:
            job.take_a(decode_matrix_descriptor(value(source_a)))
        if scales:
            job.take_scales(value(scales[0]), value(scales[1]))
        job.issue_result()
        submit(warp, job.ctas[0], Operation(instruction.name, job.run, warp.program.place(warp, instruction)))

    return run


class _Product:
    """One tcgen05.mma: what it reads and writes is checked when it is issued, and done when the pipe gets to it."""

    def __init__(
        self,
        warp: Warp,
        mask: Mask,
        d: InstructionDescriptor,
        ctas: list[Cta],
        where: int,
        accumulate: bool,
        input_scale: int,
    ) -> None:
        self.warp, self.d, self.ctas = warp, d, ctas
        self.lane, self.column = where >> 16, where & 0xFFFF
        self.accumulate, self.input_scale = accumulate, input_scale
        self.slot, self.time = warp.cta.slot(warp.index, PIPE), warp.next_time(PIPE)
        self.known = pipe_view(warp, mask)
        self.access = warp.order.async_access(mask)
        self.chunks_a: Chunks | None = None
        self.a_cells: tuple[tuple[Block, ...], int] | None = None
        self.scales: list[tuple[umma_scales.ScaleWords, NDArray[np.int64]]] = []

    def take_b(self, at: MatrixDescriptor) -> None:
        self.chunks_b = self._chunks("b", at)

    def take_a(self, at: MatrixDescriptor) -> None:
        self.chunks_a = self._chunks("a", at)

    def take_a_from_tensor_memory(self, where: int) -> None:
        column = where & 0xFFFF
        self.a_cells = (umma_layouts.operand_blocks(self.d, where >> 16), column)
        for cta in self.ctas:
            for touched, columns in _cells_touched(self.d, where >> 16, column, result=False):
                self._read(cta, touched, columns)

    def take_scales(self, where_a: int, where_b: int) -> None:
        for operand, where in (("a", where_a), ("b", where_b)):
            where &= umma_scales.ADDRESS_MASK
            if where >> 16:
                raise EmulationError(
                    "tensor-memory",
                    f"scale factors of {operand.upper()} at lane {where >> 16}; they start at lane 0",
                )
            at = umma_scales.scale_words(self.d, operand)
            touched, columns, flat = _cells_of_scales(self.d, operand, where)
            self.scales.append((at, flat))
            for cta in self.ctas:
                self._read(cta, touched, columns)

    def issue_result(self) -> None:
        for cta in self.ctas:
            for where, columns in _cells_touched(self.d, self.lane, self.column, result=True):
                if self.accumulate:
                    self._read(cta, where, columns)
                cta.tensor_memory().check_columns(columns, "the result of tcgen05.mma")
                write_cells(self.warp, cta, where, self.known, self.slot, self.time)

    def run(self) -> None:
        b = np.concatenate([self._rows("b", cta, self.chunks_b) for cta in self.ctas])
        right: umma.Matrix | None = None
        scale_of_right: NDArray[np.uint8] | None = None
        for cta in self.ctas:
            scale_a = scale_b = None
            if self.scales:
                scale_a, scale_b = (self._scales(cta, at, flat) for at, flat in self.scales)
            old = self._accumulator(cta) if self.accumulate else None
            left = umma.values_of(self.d, "a", self._a(cta), scale_a, self.a_cells is not None)
            if right is None or not _same(scale_b, scale_of_right):
                right, scale_of_right = umma.values_of(self.d, "b", b, scale_b), scale_b
            result = umma.accumulate(self.d, left, right, old, self.input_scale)
            words = cta.tensor_memory().words
            for block in umma_layouts.accumulator_blocks(self.d, self.lane):
                first = self.column + block.column
                part = result[block.rows, block.columns]
                words[block.lanes, first : first + part.shape[1]] = part

    def _chunks(self, operand: str, at: MatrixDescriptor) -> Chunks:
        chunks = _operand_chunks(self.d, operand, at, self.ctas[0].shared.granule)
        for cta in self.ctas:
            read_operand(self.access, cta, chunks, self.slot, self.time)
        return chunks

    def _rows(self, operand: str, cta: Cta, chunks: Chunks) -> NDArray[np.uint8]:
        transposed = self.d.transpose_a if operand == "a" else self.d.transpose_b
        return umma_operands.rows_of_chunks(chunks.gather(cta), self.d.element_bits(operand), transposed)

    def _a(self, cta: Cta) -> NDArray[np.uint8]:
        if self.a_cells is None:
            assert self.chunks_a is not None
            return self._rows("a", cta, self.chunks_a)
        blocks, column = self.a_cells
        words = cta.tensor_memory().words
        copies: dict[int, NDArray[np.uint32]] = {}
        for block in blocks:
            part = words[block.lanes, column + block.column : column + block.column + 8]
            known = copies.setdefault(block.rows.start, part)
            if (known != part).any():
                raise EmulationError(
                    "tensor-memory", "the two copies of A that cta_group::2 with M = 128 needs differ"
                )
        rows = np.concatenate([copies[start] for start in sorted(copies)])
        return np.ascontiguousarray(rows).view(np.uint8)

    def _read(self, cta: Cta, where: Where | Region, columns: slice | NDArray[np.int64]) -> None:
        cta.tensor_memory().check_columns(columns, "tcgen05.mma")
        read_cells(self.warp, cta, where, self.known, self.slot, self.time)

    def _scales(self, cta: Cta, at: umma_scales.ScaleWords, flat: NDArray[np.int64]) -> NDArray[np.uint8]:
        return umma_scales.scales_of_words(cta.tensor_memory().words.reshape(-1).take(flat), at)

    def _accumulator(self, cta: Cta) -> NDArray[np.uint32]:
        words = cta.tensor_memory().words
        blocks = umma_layouts.accumulator_blocks(self.d, self.lane)
        if len(blocks) == 1:
            at = _cells_of(blocks[0], self.column)
            return words[at.rows, at.columns]
        old = np.empty((self.d.m // self.d.cta_group, self.d.n), dtype=np.uint32)
        for block in blocks:
            part = old[block.rows, block.columns]
            first = self.column + block.column
            part[...] = words[block.lanes, first : first + part.shape[1]]
        return old


def _same(scales: NDArray[np.uint8] | None, others: NDArray[np.uint8] | None) -> bool:
    return scales is others or (scales is not None and others is not None and np.array_equal(scales, others))


def _cells_of(block: Block, column: int) -> Cells:
    """The cells of a block of a matrix in tensor memory."""
    first = column + block.column
    return Cells(block.lanes, slice(first, first + block.columns.stop - block.columns.start))


@lru_cache(maxsize=1024)
def _cells_touched(
    d: InstructionDescriptor, lane: int, column: int, result: bool
) -> tuple[tuple[Region, slice], ...]:
    """The cells of D, or of A in tensor memory, and the columns of each part."""
    blocks = (umma_layouts.accumulator_blocks if result else umma_layouts.operand_blocks)(d, lane)
    parts = [_cells_of(block, column) for block in blocks]
    return tuple((region_of(part, TMEM_COLUMNS), part.columns) for part in parts)


@lru_cache(maxsize=1024)  # of 20 KB, where stores are of words; a kernel has a hundred at most
def _operand_chunks(d: InstructionDescriptor, operand: str, at: MatrixDescriptor, granule: int) -> Chunks:
    """The chunks of an operand in one CTA's shared memory, whose shadow has this granule."""
    umma_operands.check_operand(d, operand, at.swizzle)
    transposed = d.transpose_a if operand == "a" else d.transpose_b
    rows = umma_operands.operand_rows(d, operand)
    return chunks_at(umma_operands.operand_chunks(at, rows, d.element_bits(operand), transposed), granule)


@lru_cache(maxsize=1024)
def _cells_of_scales(
    d: InstructionDescriptor, operand: str, column: int
) -> tuple[Region, slice | NDArray[np.int64], NDArray[np.int64]]:
    """The cells of the scale factors of an operand, their columns, and where their words lie: [replicas, rows]."""
    at = umma_scales.scale_words(d, operand)
    columns = at.columns + column
    where = cells(at.lanes, columns)
    across = where.columns if isinstance(where, Cells) else columns
    return region_of(where, TMEM_COLUMNS), across, at.lanes * TMEM_COLUMNS + columns


@handles("tcgen05.commit")
def _commit(instruction: Instruction, program: Program) -> Handler:
    """Arrives on a barrier when the tcgen05 operations that this thread issued before are done."""
    where = address(instruction.operands[0])
    multicast = "multicast::cluster" in instruction.modifiers
    ranks = read(instruction.operands[1], "b16") if multicast else None
    group = cta_group(instruction, program)

    def run(warp: Warp, mask: Mask) -> None:
        one_lane(mask, instruction.name)
        at = warp.shared_address(int(active(where(warp), mask)[0]))
        lane = 0 if mask is None else int(np.argmax(mask))
        cluster = warp.cta.cluster
        if ranks is None:
            targets = [cluster.at_address(at)[0]]
        else:
            bits = int(active(ranks(warp), mask)[0])
            if bits >> cluster.size:
                raise EmulationError(
                    "out-of-range", f"a multicast mask of {bits:#x} in a cluster of {cluster.size}"
                )
            targets = [cta for cta in cluster.ctas if bits >> cta.rank & 1]
        barriers = [cta.mbarrier(at & OFFSET_MASK, instruction.name) for cta in targets]
        for barrier in barriers:
            barrier.check_visible(warp.order, lane)
            barrier.committing += 1
        clock = warp.released(mask)
        slot = warp.cta.slot(warp.index, PIPE)
        clock[READY, slot] = clock[ASYNC, slot] = warp.times[PIPE]

        def land() -> None:
            _arrive(warp, barriers, clock)

        submit(
            warp,
            pair(warp, group)[0],
            Operation(instruction.name, land, warp.program.place(warp, instruction)),
        )

    return run


def _arrive(warp: Warp, barriers: list[MBarrier], clock: Clock) -> None:
    for barrier in barriers:
        barrier.commit(clock)
    warp.machine.events += 1


@handles("tcgen05.shift")
def _shift(instruction: Instruction, program: Program) -> Handler:
    raise PtxError(f"the instruction {instruction.name} is not modelled")
