"""tcgen05.mma, commit and shift (PTX ISA, "Matrix Multiply and Accumulate Operations using tcgen05")."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

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
from cute_kernels.emulator.shadow import Cells, Region, region_of
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

    @lru_cache(maxsize=128)
    def plan(bits: int, d_at: int, a_at: int, b_at: int, scales_at: tuple[int, ...], granule: int) -> _Plan:
        d = decode_instruction_descriptor(bits, kind, group, vector, a_in_tensor_memory)
        return _planned(d, d_at, a_at, b_at, scales_at, a_in_tensor_memory, granule)

    def run(warp: Warp, mask: Mask) -> None:
        lane = one_lane(mask, instruction.name)

        def value(source: Any) -> int:
            return int(source(warp).item(lane))

        if any(value(item) for item in disabled):
            raise PtxError("tcgen05.mma with disabled output lanes is not modelled")
        at = plan(
            value(descriptor),
            value(where_d),
            value(source_a),
            value(source_b),
            tuple(value(scale) for scale in scales),
            warp.cta.shared.granule,
        )
        job = _Product(warp, at, pair(warp, group), bool(value(enabled)), input_scale)
        job.issue(mask)
        submit(warp, job.ctas[0], Operation(instruction.name, job.run, warp.program.place(warp, instruction)))

    return run


class _Plan(NamedTuple):
    """What a tcgen05.mma touches, in each of its CTAs: chunks of shared memory, and of tensor memory cells with their
    columns. scales: where the words of the scale factors of A and of B are, and which of a CTA's words these are."""

    d: InstructionDescriptor
    chunks_a: Chunks | None
    chunks_b: Chunks
    a_blocks: tuple[Block, ...]  # of A in tensor memory
    a_column: int
    cells_read: tuple[tuple[Region, slice | NDArray[np.int64]], ...]
    scales: tuple[tuple[umma_scales.ScaleWords, NDArray[np.int64]], ...]
    result: tuple[tuple[Region, slice], ...]
    blocks: tuple[Block, ...]  # of the result
    column: int


def _planned(
    d: InstructionDescriptor,
    d_at: int,
    a_at: int,
    b_at: int,
    scales_at: tuple[int, ...],
    a_in_tensor_memory: bool,
    granule: int,
) -> _Plan:
    chunks_b = _operand_chunks(d, "b", decode_matrix_descriptor(b_at), granule)
    chunks_a: Chunks | None = None
    a_blocks: tuple[Block, ...] = ()
    cells_read: list[tuple[Region, slice | NDArray[np.int64]]] = []
    if a_in_tensor_memory:
        a_blocks = umma_layouts.operand_blocks(d, a_at >> 16)
        cells_read += _cells_touched(d, a_at >> 16, a_at & 0xFFFF, result=False)
    else:
        chunks_a = _operand_chunks(d, "a", decode_matrix_descriptor(a_at), granule)
    scales = []
    for operand, where in zip("ab", scales_at, strict=False):
        touched, columns, flat = _cells_of_scales(d, operand, where & umma_scales.ADDRESS_MASK)
        cells_read.append((touched, columns))
        scales.append((umma_scales.scale_words(d, operand), flat))
    lane, column = d_at >> 16, d_at & 0xFFFF
    return _Plan(
        d,
        chunks_a,
        chunks_b,
        a_blocks,
        a_at & 0xFFFF,
        tuple(cells_read),
        tuple(scales),
        _cells_touched(d, lane, column, result=True),
        umma_layouts.accumulator_blocks(d, lane),
        column,
    )


class _Product:
    """One tcgen05.mma: what it reads and writes is checked when it is issued, and done when the pipe gets to it."""

    def __init__(self, warp: Warp, plan: _Plan, ctas: list[Cta], accumulate: bool, input_scale: int) -> None:
        self.warp, self.plan, self.ctas = warp, plan, ctas
        self.accumulate, self.input_scale = accumulate, input_scale

    def issue(self, mask: Mask) -> None:
        """Checks and records all accesses."""
        warp, plan = self.warp, self.plan
        slot, time = warp.cta.slot(warp.index, PIPE), warp.next_time(PIPE)
        known, access = pipe_view(warp, mask), warp.order.async_access(mask)
        for chunks in (plan.chunks_b, plan.chunks_a):
            if chunks is not None:
                for cta in self.ctas:
                    read_operand(access, cta, chunks, slot, time)
        for cta in self.ctas:
            memory = cta.tensor_memory()
            for where, columns in plan.cells_read:
                memory.check_columns(columns, "tcgen05.mma")
                read_cells(warp, cta, where, known, slot, time)
            for where, columns in plan.result:
                if self.accumulate:
                    memory.check_columns(columns, "tcgen05.mma")
                    read_cells(warp, cta, where, known, slot, time)
                memory.check_columns(columns, "the result of tcgen05.mma")
                write_cells(warp, cta, where, known, slot, time)

    def run(self) -> None:
        plan, d = self.plan, self.plan.d
        parts = [self._rows("b", cta, plan.chunks_b) for cta in self.ctas]
        b = parts[0] if len(parts) == 1 else np.concatenate(parts)
        right: umma.Matrix | None = None
        scale_of_right: NDArray[np.uint8] | None = None
        for cta in self.ctas:
            scale_a = scale_b = None
            words = cta.tensor_memory().words
            if plan.scales:
                scale_a, scale_b = (
                    umma_scales.scales_of_words(words.reshape(-1).take(flat), at) for at, flat in plan.scales
                )
            old = self._accumulator(words) if self.accumulate else None
            left = umma.values_of(d, "a", self._a(cta), scale_a, plan.chunks_a is None)
            if right is None or not _same(scale_b, scale_of_right):
                right, scale_of_right = umma.values_of(d, "b", b, scale_b), scale_b
            result = umma.accumulate(d, left, right, old, self.input_scale)
            for block in plan.blocks:
                at = _cells_of(block, plan.column)
                words[at.rows, at.columns] = result[block.rows, block.columns]

    def _rows(self, operand: str, cta: Cta, chunks: Chunks) -> NDArray[np.uint8]:
        d = self.plan.d
        transposed = d.transpose_a if operand == "a" else d.transpose_b
        return umma_operands.rows_of_chunks(chunks.gather(cta), d.element_bits(operand), transposed)

    def _a(self, cta: Cta) -> NDArray[np.uint8]:
        plan = self.plan
        if plan.chunks_a is not None:
            return self._rows("a", cta, plan.chunks_a)
        words = cta.tensor_memory().words
        copies: dict[int, NDArray[np.uint32]] = {}
        for block in plan.a_blocks:
            first = plan.a_column + block.column
            part = words[block.lanes, first : first + umma_layouts.OPERAND_COLUMNS]
            known = copies.setdefault(block.rows.start, part)
            if (known != part).any():
                raise EmulationError(
                    "tensor-memory", "the two copies of A that cta_group::2 with M = 128 needs differ"
                )
        rows = np.concatenate([copies[start] for start in sorted(copies)])
        return np.ascontiguousarray(rows).view(np.uint8)

    def _accumulator(self, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
        plan = self.plan
        if len(plan.blocks) == 1:
            at = _cells_of(plan.blocks[0], plan.column)
            return words[at.rows, at.columns]
        old = np.empty((plan.d.m // plan.d.cta_group, plan.d.n), dtype=np.uint32)
        for block in plan.blocks:
            at = _cells_of(block, plan.column)
            old[block.rows, block.columns] = words[at.rows, at.columns]
        return old


def _same(scales: NDArray[np.uint8] | None, others: NDArray[np.uint8] | None) -> bool:
    return scales is others or (
        scales is not None and others is not None and scales.tobytes() == others.tobytes()
    )


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
    if column >> 16:
        raise EmulationError(
            "tensor-memory",
            f"scale factors of {operand.upper()} at lane {column >> 16}; they start at lane 0",
        )
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
