"""tcgen05.mma, block-scaled and plain: descriptors, the scale factors' way into TMEM, one K tile of MMAs.

Sources: PTX ISA, "Matrix descriptor", "Instruction descriptor" and "Block scaling for tcgen05.mma"; CUTLASS,
include/cute/arch/mma_sm100_desc.hpp, for the same fields.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32
from cutlass.experimental import primitives as prims

from cute_kernels.device import elect, pair
from cute_kernels.device.umma_formats import MMA_BYTES, STEPS, Format, OperandTile
from cute_kernels.scale_layout import ATOM_ROWS, utccp_row

_F32 = 1  # of the accumulator, in an instruction descriptor without scales
NEXT_A, NEXT_B = (
    1 << 29,
    1 << 4,
)  # of an instruction descriptor: the scale byte of A, or of B, moves on by one


def tile_descriptor(array: Any, tile: OperandTile) -> Any:
    """Return the matrix descriptor (64 bits) of a tile of A or B; plus n, it begins 16 * n bytes later.

    array: the tile's start in shared memory, 1024-byte aligned.
    """
    return prims.Tcgen05SmemDesc.build(
        array,
        leading_byte_offset=tile.leading_bytes,
        stride_byte_offset=tile.stride_bytes,
        layout=prims.Tcgen05SmemSwizzle.SWIZZLE_128B,
    )


def descriptor_behind(descriptor: Any, tile: OperandTile, other: OperandTile) -> Any:
    """Return the tile_descriptor of `other`, which lies right behind `tile`, from that of `tile`.

    One addition: a second descriptor would be carried round the loop beside the first.
    """
    return descriptor + (tile.nbytes // 16 + ((other.leading_bytes - tile.leading_bytes) // 16 << 16))


def scales_descriptor(array: Any) -> Any:
    """Return the matrix descriptor of scale atoms that start at `array`, 16-byte aligned; plus n, as above.

    Eight rows of an atom are 128 bytes. The other offset is not read: an atom is a single column of 16 bytes.
    """
    return prims.Tcgen05SmemDesc.build(array, leading_byte_offset=16, stride_byte_offset=128)


def plain_descriptor(
    form: Format, tiles: tuple[OperandTile, OperandTile], m: int, n: int, ctas: int = 1
) -> int:
    """Return the instruction descriptor of an MMA without scales: dense, FP32 accumulation."""
    assert m in (64 * ctas, 128 * ctas), f"m {m}: of {ctas} CTAs, each has 64 or 128 rows"
    step = 8 if m == 64 else 16 * ctas
    assert n in range(step, 257, step), f"n {n}: N is a multiple of {step} up to 256"
    types = _F32 << 4 | form.a.code << 7 | form.b.code << 10
    return types | _transposes(tiles) | (n >> 3) << 17 | (m >> 4) << 24


def _transposes(tiles: tuple[OperandTile, OperandTile]) -> int:
    """The bits of an instruction descriptor that say which of A and B are MN-major."""
    return (tiles[0].major == "mn") << 15 | (tiles[1].major == "mn") << 16


def scaled_descriptor(
    form: Format,
    tiles: tuple[OperandTile, OperandTile],
    m: int,
    n: int,
    byte_a: int,
    byte_b: int,
    ctas: int = 1,
) -> int:
    """Return the instruction descriptor of a block-scaled MMA: dense, FP32 accumulation.

    byte_a, byte_b: of a scale column, where the scale factors of a row of A and of B begin; one byte more is
        `NEXT_A` or `NEXT_B` more.
    """
    assert m == 128 * ctas, f"m {m}: of {ctas} CTAs, each has 128 rows"
    assert n in range(16 * ctas, 257, 16 * ctas), f"n {n}: N is a multiple of {16 * ctas} up to 256"
    per_mma = MMA_BYTES * 8 // form.bits // form.block
    for byte in (byte_a, byte_b):
        assert byte in range(0, 4, per_mma), f"scale byte {byte}: an MMA takes {per_mma} of four"
    types = form.a.code << 7 | form.b.code << 10 | _transposes(tiles) | form.scale << 23
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


def copy_scales(target: Any, source: Any, atoms: int, ctas: int = 1) -> None:
    """Copy scale atoms from shared memory to TMEM, four columns an atom, to all four quarters; by a whole warp.

    target: TMEM address. source: scales_descriptor of the first atom. ctas: 2 to do so in both CTAs of a pair.
    The copies take place before MMAs that this warp issues later.
    """
    shape, multicast = prims.S2TCopyMode.S2T_32x128b_WARPX4

    def copy(atom: int) -> None:
        at, group = column(target, 4 * atom), pair.group(ctas)
        prims.tcgen05_cp(shape, at, source + atom * 32, multicast=multicast, group=group)

    for atom in range(atoms):
        elect.once(partial(copy, atom))


def tile_scales(form: Format, k: Any, address: Any) -> Any:
    """Return what K tile `k` adds to an instruction descriptor, where tiles share the words of their scale factors.

    Else 0, in a way that the compiler does not see through: as the upper two bits of a TMEM address, which has none.
    So it keeps the descriptors of the tile's MMAs in registers, rather than move two constants to such for each.
    """
    next_word = {NEXT_A: form.a.tiles_per_word, NEXT_B: form.b.tiles_per_word}
    shared: dict[int, int] = {}  # tiles -> the bytes that move on together, in one multiplication
    for unit, tiles in next_word.items():
        shared[tiles] = shared.get(tiles, 0) + unit
    moved = [(k & (tiles - 1)) * units for tiles, units in shared.items() if tiles > 1]
    return sum(moved) if moved else Uint32(address) >> 30


def multiply(
    form: Format,
    tiles: Any,
    accumulator: Any,
    a: Any,
    b: Any,
    sfa: Any,
    sfb: Any,
    sfb_columns: int,
    k: Any,
    add: Any,
    ctas: int = 1,
    mmas: int = STEPS,
) -> None:
    """Multiply K tile `k` with scale factors: four MMAs; by a whole warp.

    tiles: the OperandTiles of A and B. a, b: their tile_descriptors.
    accumulator, sfa, sfb: TMEM addresses. A word of A's scale factors is four columns, and one of B's
        `sfb_columns`.
    add: whether to add to the accumulator, which is overwritten else.
    ctas: 2 for a pair. Each CTA has half the rows of A and half of B, and sums up its rows of A by all of B; it has
        scale factors for just those.
    mmas: how many, if not four.
    """
    shared = tile_scales(form, k, accumulator)
    m, n = (tile.rows * ctas for tile in tiles)

    def step_of(step: int) -> None:
        (word_a, byte_a), (word_b, byte_b) = form.a.scale_place(step), form.b.scale_place(step)
        prims.tcgen05_mma_block_scale(
            prims.MMABlockScaleKind[form.kind.upper()],
            pair.group(ctas),
            column(accumulator, 0),
            a + tiles[0].step_bytes // 16 * step,
            b + tiles[1].step_bytes // 16 * step,
            scaled_descriptor(form, tiles, m, n, byte_a, byte_b, ctas) + shared,
            enable_input_d=add if step == 0 else True,
            scale_a=column(sfa, word_a * 4),
            scale_b=column(sfb, word_b * sfb_columns),
            scale_vec_size=prims.Tcgen05MMABlockScale[f"BLOCK{form.block}"],
        )

    for step in range(mmas):
        elect.once(partial(step_of, step))


def multiply_plain(
    form: Format,
    tiles: Any,
    accumulator: Any,
    a: Any,
    b: Any,
    add: Any,
    ctas: int = 1,
    mmas: int = STEPS,
) -> None:
    """Multiply a K tile without scale factors: four MMAs, the arguments being those of `multiply`; by a whole warp."""
    m, n = (tile.rows * ctas for tile in tiles)

    def step_of(step: int) -> None:
        prims.tcgen05_mma(
            prims.Tcgen05MMAKind[form.kind.upper()],
            pair.group(ctas),
            column(accumulator, 0),
            a + tiles[0].step_bytes // 16 * step,
            b + tiles[1].step_bytes // 16 * step,
            plain_descriptor(form, tiles, m, n, ctas),
            enable_input_d=add if step == 0 else True,
        )

    for step in range(mmas):
        elect.once(partial(step_of, step))
