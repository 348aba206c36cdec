"""How NVFP4 weights are packed for the sm80 family: the contract of repack and GEMM, in plain integers.

W [N, K] is E2M1 codes (uint8 [N, K/2], low nibble = even k) and one UE4M3 scale for 16 elements of K
([N, K/16]); its FP32 global scale stays outside. K is a multiple of 16, N is any.

Packed, W is uint8 [NB, KB, 1152] with NB = ceil(N/16) and KB = ceil(K/128): units of 16 rows x 128 k, each
contiguous. Several experts are [E, NB, KB, 1152]. Rows past N and k past K have codes 0 and scales 0.

| bytes of a unit | hold |
| --- | --- |
| 0 .. 511 | chunk 0, k 0 .. 63 |
| 512 .. 1023 | chunk 1, k 64 .. 127 |
| 1024 .. 1151 | scales of both chunks |

A chunk is 16 bytes for each lane l = 4 * g + t (g = 0 .. 7, t = 0 .. 3), at 16 * l: four little-endian words
j = 0 .. 3. Word j is the lane's A fragment of the chunk's j-th `mma.m16n8k16`, whose rows are N. K is permuted
so that all values of a lane share two scales, one for row g and one for row g + 8:

    a0 = W[g][16t + 4j + {0, 1}]   a1 = W[g + 8][16t + 4j + {0, 1}]
    a2 = W[g][16t + 4j + {2, 3}]   a3 = W[g + 8][16t + 4j + {2, 3}]

A fragment register holds a pair, the even k in its low half; the B fragment of a token is then
x[16t + 4j .. 16t + 4j + 3], eight contiguous bytes. Bits of the pairs are spread over the word so that few
operations make each the BF16 pattern of value * 2^-126, with sign, two exponent bits and the mantissa bit at
15, 8, 7 and 6 of each half:

    a0: (w << 2) & 0x81C081C0     a1: (w << 6) & 0x81C081C0
    a2: rotate_left(w, 12) & 0x81C081C0
    a3: (w & 0x81808180) | ((w >> 8) & 0x00400040)

Lane l's scales are the word at 1024 + 4 * l, the bytes as they were: chunk 0 row g, chunk 1 row g, chunk 0 row
g + 8, chunk 1 row g + 8; each of columns 16t .. 16t + 15 of its chunk. The BF16 pairs of scale * 2^-120, row g
in the low half, are (w << 4) & 0x07F007F0 for chunk 0 and (w >> 4) & 0x07F007F0 for chunk 1.
"""

from __future__ import annotations

BLOCK = 16  # elements of K that share a scale
UNIT_ROWS = 16
UNIT_K = 128
CHUNK_K = 64
CHUNKS = UNIT_K // CHUNK_K
CHUNK_BYTES = UNIT_ROWS * CHUNK_K // 2
SCALES_AT = CHUNKS * CHUNK_BYTES
UNIT_BYTES = SCALES_AT + UNIT_ROWS * UNIT_K // BLOCK
ROW_GROUPS = 8  # g: a lane holds rows g and g + 8
LANE_GROUPS = CHUNK_K // BLOCK  # t: a lane holds one block of 16 of its chunk
WORDS = 4  # j: of a lane in a chunk, each with four elements of either row

# Where a code's bits m, e0, e1, s lie in the word, for the low half of the pair; 16 further on, modulo 32, for
# the high half. So the exponent and mantissa of a2 lie in the half that the value does not belong to.
A0 = (4, 5, 6, 13)
A1 = (0, 1, 2, 9)
A2 = (26, 27, 28, 3)
A3 = (14, 7, 8, 15)


def _destinations(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple((bit + 16 * half) % 32 for pair in (first, second) for half in (0, 1) for bit in pair)


# Bit of the word for each of the 16 bits that are four consecutive codes of a row, the smallest k lowest.
ROW_LOW = _destinations(A0, A2)  # of row g
ROW_HIGH = _destinations(A1, A3)  # of row g + 8


def units(n: int, k: int) -> tuple[int, int]:
    """Return (NB, KB), the units along N and K of an N x K matrix."""
    return -(-n // UNIT_ROWS), -(-k // UNIT_K)
