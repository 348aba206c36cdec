"""NVFP4 to BF16: out = bf16(float32(code * scale) * global_scale), element by element.

    packed        uint8 [groups, blocks, 8]    E2M1 codes, two a byte, the even element in the low nibble
    scales        uint8 [groups, blocks]       E4M3 codes, one for a block of 16 consecutive elements
    global_scale  float32 [groups]             on the device, so that no launch waits for its value
    out           bfloat16 [groups, blocks, 16]

A matrix [rows, K] is groups = 1, blocks = rows * K / 16; weights [E, N, K] of E experts with a global scale
each are groups = E, blocks = N * K / 16. The grid is (ceil(blocks / blocks_per_cta), groups), so at most
65,535 groups. All tensors are contiguous; packed and global_scale are aligned to 4 bytes, out to 16.

Exactly: code * scale has at most 6 significant bits, so BF16 holds it without rounding. Its product with
global_scale is rounded to float32 and that to BF16, both to nearest even, subnormals kept: bit for bit
`formats.dequantize(...).to(torch.bfloat16)`. Scale codes are read as torch.float8_e4m3fn: 0x7F and 0xFF make
their block NaN (0x7FFF), and bit 7, which UE4M3 does not have, negates. A code -0 gives -0.

| CTA (x, y) | words x * words_per_cta onwards of group y; a word is 8 elements: 4 bytes in, 16 bytes out |
| thread t   | of those, words t, t + threads, ...; it issues all its loads before it decodes the first    |

The output is 78 % of the traffic, so the stores decide: 32 lanes that store 16 bytes each, side by side, fill
whole 128-byte lines. A thread that loads 16 bytes of codes owns 64 bytes of output, and each of its stores
leaves 32-byte sectors half written; tried on an H200, that halves the bandwidth. What this reaches there is in
perf/baselines/nvfp4_dequantize_h200.json.

No shared memory, no barriers, no order between threads: one pass.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Float32, Int32, Int64, Pointer, Uint8, Uint32, Vector
from cutlass.cute.runtime import make_ptr

from cute_kernels.device import dequant
from sm80.shape import DequantizeShape

WORD_OUT = 4  # 32-bit words of BF16 pairs that one word of codes becomes


@cute.jit
def decode(word: Uint32, scale: Uint32, global_scale: Float32) -> Vector:
    """Eight codes times their scale (a BF16 pair of equals) and the global scale: 16 bytes of BF16."""
    # Pair i holds elements i and i + 4. In float32 each is on its own, so the last step can pair neighbours.
    pairs = [dequant.multiply_bf16x2(dequant.e2m1_pair(word, i), scale) for i in range(4)]
    values = [dequant.bf16_low(pair) * global_scale for pair in pairs]
    values += [dequant.bf16_high(pair) * global_scale for pair in pairs]
    out = [dequant.to_bf16x2(values[i], values[i + 1]) for i in range(0, 8, 2)]
    return Vector.from_elements(tuple(out), Uint32)


@cute.jit
def whole_tile(packed: Pointer, scales: Pointer, out: Pointer, global_scale: Float32, s: Constexpr) -> None:
    """All words of a CTA that has all of them; the pointers are at this thread's first."""
    words = [(packed + i * s.threads).load(alignment=4) for i in range(s.words_per_thread)]
    codes = [(scales + i * s.threads // 2).load() for i in range(s.words_per_thread)]
    for i in cutlass.range_constexpr(s.words_per_thread):
        values = decode(words[i], dequant.e4m3_pair(Uint32(codes[i])), global_scale)
        (out + i * s.threads * WORD_OUT).store(values, alignment=16)


@cute.jit
def last_tile(
    packed: Pointer, scales: Pointer, out: Pointer, global_scale: Float32, left: Int32, s: Constexpr
) -> None:
    """The same for the last CTA: `left` words remain from this thread's first on, maybe none."""
    for i in cutlass.range(s.words_per_thread, unroll=1):
        if i * s.threads < left:
            word = (packed + i * s.threads).load(alignment=4)
            code = (scales + i * s.threads // 2).load()
            values = decode(word, dequant.e4m3_pair(Uint32(code)), global_scale)
            (out + i * s.threads * WORD_OUT).store(values, alignment=16)


@cute.kernel
def nvfp4_dequantize(
    packed: Pointer, scales: Pointer, global_scale: Pointer, out: Pointer, blocks: Int64, s: Constexpr
) -> None:
    thread, _, _ = cute.arch.thread_idx()
    tile, group, _ = cute.arch.block_idx()
    first = Int64(tile) * s.words_per_cta  # word in the group
    word = Int64(group) * blocks * 2 + first + thread
    factor = (global_scale + group).load(alignment=4)
    packed += word
    scales += word >> 1
    out += word * WORD_OUT
    left = blocks * 2 - first
    if left >= s.words_per_cta:
        whole_tile(packed, scales, out, factor, s)
    else:
        last_tile(packed, scales, out, factor, Int32(left) - thread, s)


@cute.jit
def entry(
    packed: Pointer, scales: Pointer, global_scale: Pointer, out: Pointer, blocks: Int64, s: Constexpr
) -> None:
    nvfp4_dequantize(packed, scales, global_scale, out, blocks, s).launch(
        grid=(1, 1, 1), block=(s.threads, 1, 1)
    )


def compile(shape: DequantizeShape, name: str, arch: str, options: str) -> Any:
    """Compile for an architecture; the result has the PTX and the cubin."""
    nvfp4_dequantize.set_name_prefix(name, remove_cutlass_symbol=True, keep_mangled_name=False)
    # Only the types matter; a kernel's pointer parameters keep no alignment, so every access states its own.
    pointers = [make_ptr(t, 16, cute.AddressSpace.gmem) for t in (Uint32, Uint8, Float32, Uint32)]
    return cute.compile(entry, *pointers, Int64(0), shape, options=f"--gpu-arch {arch} {options}")
