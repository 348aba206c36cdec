"""Block-scaled tcgen05.mma: descriptors, the scale factors' way into TMEM, one K tile of MMAs.

Sources: PTX ISA, "Matrix descriptor", "Instruction descriptor" and "Block scaling for tcgen05.mma"; CUTLASS,
include/cute/arch/mma_sm100_desc.hpp, for the same fields.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32
from cutlass.experimental import primitives as prims

from cute_kernels.device.umma_formats import MMA_BYTES, STEPS, Format, Operand
from cute_kernels.scale_layout import ATOM_ROWS, utccp_row

NEXT_A, NEXT_B = (
    1 << 29,
    1 << 4,
)  # of an instruction descriptor: the scale byte of A, or of B, moves on by one


def matrix_descriptor(array: Any, stride_bytes: int, swizzle: Any) -> Any:
    """Return the descriptor (64 bits) of a K-major matrix in shared memory; plus n, it begins 16 * n bytes later.

    array: the matrix' start, 16-byte aligned, or 1024 with a 128-byte swizzle.
    stride_bytes: from one group of eight rows to the next. The other stride, from one 16-byte column to the next,
        is not read: a swizzle row holds all of K, and a scale atom has a single column.
    swizzle: a member of prims.Tcgen05SmemSwizzle.
    """
    return prims.Tcgen05SmemDesc.build(
        array, leading_byte_offset=16, stride_byte_offset=stride_bytes, layout=swizzle
    )


def scaled_descriptor(form: Format, m: int, n: int, byte_a: int, byte_b: int) -> int:
    """Return the instruction descriptor of a block-scaled MMA: K-major, dense, FP32 accumulation.

    byte_a, byte_b: of a scale column, where the scale factors of a row of A and of B begin; one byte more is
        `NEXT_A` or `NEXT_B` more.
    """
    assert m == 128, f"m {m}: one CTA has M = 128"
    assert n in range(16, 257, 16), f"n {n}: N is 16, 32 .. 256"
    per_mma = MMA_BYTES * 8 // form.bits // form.block
    for byte in (byte_a, byte_b):
        assert byte in range(0, 4, per_mma), f"scale byte {byte}: an MMA takes {per_mma} of four"
    types = form.a.code << 7 | form.b.code << 10 | form.scale << 23
    return types | (n >> 3) << 17 | (m >> 7) << 27 | byte_a * NEXT_A | byte_b * NEXT_B


def transpose_scales(words: Any, atoms: int) -> None:
    """Put packed scale words into UTCCP order, in place; by one whole warp.

    words: Int32 of shared memory, `atoms` runs of 128: word r of a run holds four scale factors of row r. In UTCCP
    order (scale_layout.utccp_row) a run is a 128x4 atom, 32 rows of 16 bytes. The caller publishes these writes to
    the async proxy.
    """
    first = Uint32(cute.arch.lane_idx()) * 4
    places = [first + atom * ATOM_ROWS for atom in range(atoms)]
    read = [[words[Int32(utccp_row(place + i))] for i in range(4)] for place in places]
    cute.arch.sync_warp()
    for place, row in zip(places, read, strict=True):
        words.subview(Int32(place))[0:4, 16] = cutlass.Vector.from_elements(row, Int32)


def column(address: Any, offset: int) -> Any:
    """Return a pointer to the TMEM column `offset` columns behind an address."""
    return prims.make_tmem_ptr(address + offset, Int32)


def copy_scales(target: Any, source: Any, atoms: int) -> None:
    """Copy scale atoms from shared memory to TMEM, four columns an atom, to all four quarters; by one thread.

    target: TMEM address. source: matrix_descriptor of the first atom; its 8-row groups are 128 bytes apart.
    The copies take place before MMAs that this thread issues later.
    """
    shape, multicast = prims.S2TCopyMode.S2T_32x128b_WARPX4
    for atom in range(atoms):
        prims.tcgen05_cp(shape, column(target, 4 * atom), source + atom * 32, multicast=multicast)


def tile_scales(operand: Operand, k: Any) -> Any:
    """Return by how many bytes the scale factors of K tile `k` lie behind the first that shares their words."""
    return k & (operand.tiles_per_word - 1) if operand.tiles_per_word > 1 else 0


def multiply(
    form: Format, accumulator: Any, a: Any, b: Any, sfa: Any, sfb: Any, n: int, sfb_columns: int, k: Any
) -> None:
    """Multiply K tile `k` of a format: four MMAs of M 128 and N `n`; by one thread.

    accumulator, sfa, sfb: TMEM addresses. A word of A's scale factors is four columns, and one of B's
        `sfb_columns`.
    a, b: matrix_descriptors of 128-byte swizzled rows, of which an MMA takes 32 bytes.
    k: the accumulator is overwritten at 0, and added to after.
    """
    shared = tile_scales(form.a, k) * NEXT_A + tile_scales(form.b, k) * NEXT_B
    for step in range(STEPS):
        (word_a, byte_a), (word_b, byte_b) = form.a.scale_place(step), form.b.scale_place(step)
        prims.tcgen05_mma_block_scale(
            prims.MMABlockScaleKind[form.kind.upper()],
            prims.CTAGroup.CTA_1,
            column(accumulator, 0),
            a + MMA_BYTES // 16 * step,
            b + MMA_BYTES // 16 * step,
            scaled_descriptor(form, 128, n, byte_a, byte_b) + shared,
            enable_input_d=k != 0 if step == 0 else True,
            scale_a=column(sfa, word_a * 4),
            scale_b=column(sfb, word_b * sfb_columns),
            scale_vec_size=prims.Tcgen05MMABlockScale[f"BLOCK{form.block}"],
        )
