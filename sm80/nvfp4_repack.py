"""NVFP4 weights from a checkpoint's row-major tensors into the packed layout of the sm80 family.

codes    uint8 [E, N, K/2]       E2M1, two a byte, the even k in the low nibble
scales   uint8 [E, N, K/16]      UE4M3, one for a block of 16 elements of a row
packed   uint8 [E, NB, KB, 1152] as cute_kernels.w4a16_layout states it; NB = ceil(N/16), KB = ceil(K/128)

K is a multiple of 16, N is any. All tensors are contiguous; codes are aligned to 8 bytes, packed to 16. Rows past
N and k past K are zeros. The bytes are those of cute_kernels.nvfp4_weight.pack on the host; nothing else is
written. Scales are moved as they are: bytes that UE4M3 does not have are for the caller to refuse.

| CTA (x, e)    | of expert e, `warps` units side by side along K, of row block x // ceil(KB / warps) |
| warp w        | unit w of those: 16 rows x 128 k, 1152 bytes in, 1152 bytes out                      |
| lane 4 g + t  | rows g and g + 8 of block t of both chunks: 4 x (8 bytes and a scale) to 2 x 16 bytes and 4 scales |

All loads come first. Four lanes read a whole 32-byte sector of a row, and a warp stores 512 bytes side by side;
neighbouring warps read the rest of each line and of each sector of scales, so DRAM sees every byte once.

No shared memory, no barriers, no order between threads: one pass. Where a row or block does not exist, the lane
reads one that does and drops it, so that no load waits for a branch.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Int64, Pointer, Uint8, Uint32, Uint64, Vector
from cutlass.cute.runtime import make_ptr

from cute_kernels import w4a16_layout as layout
from cute_kernels.scale_layout import ceil_div
from sm80.shape import RepackShape

HALVES = 2  # a lane's rows: g and g + 8
# Where `pair_up` leaves the four codes of a row's two bytes, the smallest k first.
PAIRED = (0, 16, 8, 24)


def moves(destinations: tuple[int, ...]) -> dict[int, int]:
    """The bits that go to the same distance: {bits to rotate left by: mask of where they arrive}."""
    masks: dict[int, int] = {}
    for i, destination in enumerate(destinations):
        distance = (destination - PAIRED[i // 4] - i % 4) % 32
        masks[distance] = masks.get(distance, 0) | 1 << destination
    return masks


@cute.jit
def pair_up(codes: Uint32) -> tuple[Uint32, Uint32]:
    """The eight codes of four bytes, of which the first four and the others become words: even k in the low half,
    odd k in the high half, each code in a byte of its own."""
    even, odd = codes & Uint32(0x0F0F0F0F), (codes >> 4) & Uint32(0x0F0F0F0F)
    return (even & Uint32(0xFFFF)) | (odd << 16), (even >> 16) | (odd & Uint32(0xFFFF0000))


@cute.jit
def rotate_left(word: Uint32, distance: Constexpr[int]) -> Uint32:
    """The compiler makes it a funnel shift, or a shift where a mask drops what wraps around."""
    return (word << distance) | (word >> (32 - distance)) if cutlass.const_expr(distance) else word


@cute.jit
def place(paired: Uint32, destinations: Constexpr) -> Uint32:
    """The bits of four codes of a row where the layout has them in a word."""
    bits = Uint32(0)
    for distance, mask in moves(destinations).items():
        bits |= rotate_left(paired, distance) & Uint32(mask)
    return bits


@cute.jit
def pack_chunk(row_low: Uint64, row_high: Uint64) -> Vector:
    """A lane's 16 bytes of a chunk, from the block of 16 codes of row g and that of row g + 8."""
    words = []
    for half in cutlass.range_constexpr(2):  # of a block: eight codes
        low = pair_up(Uint32(row_low >> 32 * half))
        high = pair_up(Uint32(row_high >> 32 * half))
        words += [
            place(a, layout.ROW_LOW) | place(b, layout.ROW_HIGH) for a, b in zip(low, high, strict=True)
        ]
    return Vector.from_elements(tuple(words), Uint32)


@cute.jit
def pack_unit(
    codes: Pointer, scales: Pointer, packed: Pointer, n: Uint32, blocks: Uint32, row: Uint32, block: Uint32
) -> None:
    """What a lane does of a unit: rows `row` and `row + 8`, blocks `block` and, in chunk 1, `block + 4` of a row.

    codes, scales: of the expert. packed: of the unit.
    """
    loaded, factors = [], []
    for half in cutlass.range_constexpr(HALVES):
        for chunk in cutlass.range_constexpr(layout.CHUNKS):
            r, b = row + half * layout.ROW_GROUPS, block + chunk * layout.LANE_GROUPS
            at = Int64(min(r, n - 1)) * blocks + min(b, blocks - 1)
            exists = (r < n) & (b < blocks)
            word, factor = (codes + at).load(alignment=8), Uint32((scales + at).load())
            loaded.append(word if exists else Uint64(0))
            factors.append(factor if exists else Uint32(0))
    lane = cute.arch.lane_idx()
    for chunk in cutlass.range_constexpr(layout.CHUNKS):
        values = pack_chunk(loaded[chunk], loaded[layout.CHUNKS + chunk])
        (packed + (chunk * layout.CHUNK_BYTES // 4 + lane * layout.WORDS)).store(values, alignment=16)
    # Chunk 0 and 1 of row g, then of row g + 8.
    word = factors[0] | (factors[1] << 8) | (factors[2] << 16) | (factors[3] << 24)
    (packed + (layout.SCALES_AT // 4 + lane)).store(word, alignment=4)


@cute.kernel
def nvfp4_repack(
    codes: Pointer, scales: Pointer, packed: Pointer, n: Uint32, blocks: Uint32, s: Constexpr
) -> None:
    tile, expert, _ = cute.arch.block_idx()
    warp, lane = Uint32(cute.arch.warp_idx()), Uint32(cute.arch.lane_idx())
    row_blocks, units = ceil_div(n, layout.UNIT_ROWS), ceil_div(blocks, s.UNIT_BLOCKS)
    tiles = ceil_div(units, s.warps)
    row_block, unit = Uint32(tile) // tiles, Uint32(tile) % tiles * s.warps + warp
    if unit < units:
        source = Int64(expert) * n * blocks
        target = (Int64(expert) * row_blocks + row_block) * units + unit
        pack_unit(
            codes + source,
            scales + source,
            packed + target * (layout.UNIT_BYTES // 4),
            n,
            blocks,
            row_block * layout.UNIT_ROWS + lane // layout.LANE_GROUPS,
            unit * s.UNIT_BLOCKS + lane % layout.LANE_GROUPS,
        )


@cute.jit
def entry(codes: Pointer, scales: Pointer, packed: Pointer, n: Uint32, blocks: Uint32, s: Constexpr) -> None:
    nvfp4_repack(codes, scales, packed, n, blocks, s).launch(grid=(1, 1, 1), block=(s.threads, 1, 1))


def compile(shape: RepackShape, name: str, arch: str, options: str) -> Any:
    """Compile for an architecture; the result has the PTX and the cubin."""
    nvfp4_repack.set_name_prefix(name, remove_cutlass_symbol=True, keep_mangled_name=False)
    # Only the types matter; a kernel's pointer parameters keep no alignment, so every access states its own.
    pointers = [make_ptr(t, 16, cute.AddressSpace.gmem) for t in (Uint64, Uint8, Uint32)]
    return cute.compile(entry, *pointers, Uint32(0), Uint32(0), shape, options=f"--gpu-arch {arch} {options}")
