"""The way out: accumulators from TMEM through registers and swizzled shared memory to global memory by TMA.

An epilogue warp owns 32 rows of the tile, a row a lane, and staging buffers of its own; warps never wait for one
another. What orders a warp's lanes is a warp barrier, and its elected lane issues all its bulk copies.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Float32, Int32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T
from cutlass.experimental import primitives as prims

COLUMNS = 32  # that a lane reads at a time
CHUNK_BYTES = 16  # what a lane writes at once, and what the swizzle moves as a whole


def chunk_offsets(row_bytes: int, element_bytes: int) -> list[Any]:
    """Return this lane's place, in elements, of each 16-byte chunk of its row in a swizzled buffer of 32 rows.

    row_bytes: 128, 64 or 32, which is the swizzle's span too, or 16 without one. The swizzle is TMA's: chunk c of row
    r lies at c ^ (r % 8), or with 64 bytes at c ^ (r // 2 % 4), or with 32 at c ^ (r // 4 % 2). Eight lanes that write
    the same chunk thereby meet no bank twice. Buffers start at a multiple of 1024 bytes, after which the pattern
    repeats, or of 128 without a swizzle.
    """
    assert row_bytes in (16, 32, 64, 128), row_bytes
    lane = cute.arch.lane_idx()
    rows = 128 // row_bytes  # that share a phase
    phase = lane // rows % (8 // rows)
    elements = CHUNK_BYTES // element_bytes
    first = lane * (row_bytes // element_bytes) + phase * elements
    return [first ^ (chunk * elements) for chunk in range(row_bytes // CHUNK_BYTES)]


def read(address: Any, columns: int = COLUMNS) -> list[Any]:
    """Start reading columns of this warp's lanes from TMEM; `wait_for_read` gives the values."""
    registers = prims.tcgen05_ld("32x32b", prims.make_tmem_ptr(address, Int32), num=columns)
    return [registers[i] for i in range(columns)]


def wait_for_read(pending: list[Any]) -> list[Any]:
    """Wait for every `read` of this thread, and return the values of one, Float32.

    The registers pass through the wait: the compiler takes tcgen05.ld for complete where it stands, and would
    otherwise move or pack them before.
    """
    i32, count = T.i32(), len(pending)
    result = llvm.inline_asm(
        llvm.StructType.get_literal([i32] * count),
        [register.ir_value() for register in pending],
        "tcgen05.wait::ld.sync.aligned;",
        ",".join(["=r"] * count + [str(i) for i in range(count)]),
        has_side_effects=True,
    )
    return [Int32(llvm.extractvalue(i32, result, [i])).bitcast(Float32) for i in range(count)]


def scale(values: list[Any], factor: Any) -> list[Any]:
    """Multiply a lane's values by one factor, all Float32, two an instruction."""
    return [x for i in range(0, len(values), 2) for x in packed("mul", values[i : i + 2], [factor, factor])]


def packed(operation: str, *operands: list[Any]) -> list[Any]:
    """Return the two Float32 that "mul" or "fma" of pairs of Float32 gives, each rounded to nearest.

    One instruction; but to the compiler the results are two registers, which it then puts where a wider store of both
    and their neighbours wants them. As the halves of a 64-bit value it would copy them there.
    """
    names = "abc"[: len(operands)]
    moves = " ".join(f"mov.b64 {x}, {{{{$r{2 * i}}}, {{$r{2 * i + 1}}}}};" for i, x in enumerate(names))
    return prims.inline_ptx(
        f"{{ .reg .b64 {', '.join(names)}; {moves} {operation}.rn.f32x2 a, {', '.join(names)}; "
        "mov.b64 {{$w0}, {$w1}}, a; }",
        write_only_types=[Float32, Float32],
        read_only_args=[x for pair in operands for x in pair],
    )


@cute.jit
def store_row(target: Any, columns: Any, buffer: Any, start: Any, chunks: Constexpr, keep: Any) -> None:
    """Copy a lane's row of a staging buffer to global memory, where a box would cover rows that it must not.

    target: pointer to the row's first element, at a multiple of 16 bytes. columns: elements that D has from there on;
    of the last 16 bytes all are written, as by TMA. buffer, start, chunks: as for `stage`, or `stage_words`. keep:
    whether to store this row.
    """
    elements = CHUNK_BYTES * 8 // buffer.dtype.width
    for i in cutlass.range_constexpr(len(chunks)):
        if keep & (i * elements < columns):
            values = buffer[start + chunks[i] : elements, CHUNK_BYTES]
            (target + i * elements).store(values, alignment=CHUNK_BYTES)


def stage_words(buffer: Any, start: Any, chunks: list[Any], words: list[Any]) -> None:
    """Write a lane's words to its row of a staging buffer of Int32, as `stage` does with values."""
    for i, chunk in enumerate(chunks):
        buffer[start + chunk : 4, CHUNK_BYTES] = cutlass.Vector.from_elements(words[4 * i : 4 * i + 4], Int32)


def stage(buffer: Any, start: Any, chunks: list[Any], values: list[Any]) -> None:
    """Write a lane's 32 values to its row of a staging buffer, rounded to the buffer's type.

    buffer: array of BFloat16 or Float32; start: first element of the staging buffer; chunks: `chunk_offsets`.
    """
    elements = COLUMNS // len(chunks)
    for i, chunk in enumerate(chunks):
        part = cutlass.Vector.from_elements(values[i * elements : (i + 1) * elements], Float32)
        buffer[start + chunk : elements, CHUNK_BYTES] = part.to(buffer.dtype)


def add_staged(buffer: Any, start: Any, chunks: list[Any], values: list[Any]) -> list[Any]:
    """Return a lane's 32 values plus what its row of a staging buffer of BFloat16 holds, in Float32.

    The arguments are those of `stage`. It takes sm_100, which adds BFloat16 as it is.
    """
    elements = COLUMNS // len(chunks)
    row = [buffer[start + chunk : elements, CHUNK_BYTES] for chunk in chunks]
    words = [word for part in row for word in [part.bitcast(Int32)[i] for i in range(elements // 2)]]
    return [x for i, word in enumerate(words) for x in add_bf16(word, values[2 * i : 2 * i + 2])]


def add_bf16(word: Any, values: list[Any]) -> list[Any]:
    """Return two Float32 with the two BFloat16 of a word added to them."""
    return prims.inline_ptx(
        "{ .reg .b16 low, high; mov.b32 {low, high}, {$r0}; "
        "add.rn.f32.bf16 {$w0}, low, {$r1}; add.rn.f32.bf16 {$w1}, high, {$r2}; }",
        write_only_types=[Float32, Float32],
        read_only_args=[word, *values],
    )
