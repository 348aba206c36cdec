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

from cute_kernels.scale_layout import ATOM_ROWS, utccp_row


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


def mxf4_descriptor(m: int, n: int, sf_id: int) -> int:
    """Return the instruction descriptor of kind::mxf4: E2M1 x E2M1, UE8M0 scales, K-major, dense, K = 64.

    sf_id: 0 or 2, the byte of a scale column where the two scale factors of a row begin, for A and B alike.
    """
    assert m == 128, f"m {m}: one CTA has M = 128"
    assert n in range(16, 257, 16), f"n {n}: N is 16, 32 .. 256"
    assert sf_id in (0, 2), f"sf_id {sf_id}: pairs of scale factors begin at byte 0 or 2"
    e2m1 = ue8m0 = 1
    return sf_id << 4 | e2m1 << 7 | e2m1 << 10 | (n >> 3) << 17 | ue8m0 << 23 | (m >> 4) << 24 | sf_id << 29


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


def multiply(
    accumulator: Any, a: Any, b: Any, sfa: Any, sfb: Any, n: int, sfb_columns: int, add: Any
) -> None:
    """Multiply one K tile of 256: four MMAs of M 128, N `n`, K 64; by one thread.

    accumulator, sfa, sfb: TMEM addresses. Four columns of A's scale factors, and `sfb_columns` of B's, serve two
        MMAs in turn.
    a, b: matrix_descriptors of 128-byte swizzled rows; 64 elements are 32 bytes of a row.
    add: whether to add to the accumulator; it is overwritten otherwise.
    """
    for step in range(4):
        prims.tcgen05_mma_block_scale(
            prims.MMABlockScaleKind.MXF4,
            prims.CTAGroup.CTA_1,
            column(accumulator, 0),
            a + 2 * step,
            b + 2 * step,
            mxf4_descriptor(128, n, sf_id=step % 2 * 2),
            enable_input_d=add if step == 0 else True,
            scale_a=column(sfa, step // 2 * 4),
            scale_b=column(sfb, step // 2 * sfb_columns),
            scale_vec_size=prims.Tcgen05MMABlockScale.BLOCK32,
        )
