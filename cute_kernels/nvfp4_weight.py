"""NVFP4 weights packed for kernels that decode them in registers: pack and unpack on the host.

w4a16_layout states the layout. Both directions go through tables of 65,536 words, one lookup for four codes,
on blocks of rows that stay in the cache, spread over threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from . import w4a16_layout as layout
from .runtime.errors import ArgumentError
from .runtime.tensors import describe, require_one_device

CODE_DTYPES = (torch.uint8, torch.int8, torch.float4_e2m1fn_x2)

_MAX_SCALE = 0x7E  # 448; 0x7F is NaN, and above are negative numbers
_STEP_BYTES = 1 << 19  # of codes that one step of a thread handles: its temporaries fit the L2 cache

_Words = npt.NDArray[np.uint32]
_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PackedNvfp4Weight:
    """W [N, K], or [E, N, K] for E experts, with value = E2M1 code * UE4M3 block scale * global scale.

    data: uint8 [NB, KB, 1152] or [E, NB, KB, 1152], contiguous, in the layout of `w4a16_layout`.
    n, k: of a matrix; k is a multiple of 16.
    global_scale: float32 [1] or [E], a multiplier, on the device of `data`.

    Raises ArgumentError (a ValueError) for fields that do not belong together; values are not read.
    """

    data: torch.Tensor
    n: int
    k: int
    global_scale: torch.Tensor

    def __post_init__(self) -> None:
        require_one_device({"data": self.data, "global_scale": self.global_scale})
        if self.n < 1 or self.k < 1 or self.k % layout.BLOCK:
            raise ArgumentError(
                f"n is {self.n} and k is {self.k}; both must be positive, and k a multiple of {layout.BLOCK}"
            )
        unit_shape = (*layout.units(self.n, self.k), layout.UNIT_BYTES)
        given = tuple(self.data.shape)
        if self.data.dtype != torch.uint8 or given[-3:] != unit_shape or len(given) not in (3, 4):
            raise ArgumentError(
                f"data is {describe(self.data)}; n {self.n} and k {self.k} take uint8 {list(unit_shape)}, "
                "with one dimension in front for experts. pack() makes it"
            )
        if not self.data.is_contiguous():
            raise ArgumentError(f"data is {describe(self.data)}; it must be contiguous")
        scale = self.global_scale
        if scale.dtype != torch.float32 or tuple(scale.shape) != (self.experts or 1,):
            raise ArgumentError(
                f"global_scale is {describe(scale)}; this weight takes float32 [{self.experts or 1}], "
                "one multiplier for each matrix"
            )

    @property
    def experts(self) -> int | None:
        """E, or None for one matrix without that dimension."""
        return self.data.shape[0] if self.data.ndim == 4 else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight: (N, K) or (E, N, K)."""
        return (self.n, self.k) if self.experts is None else (self.experts, self.n, self.k)

    @property
    def device(self) -> torch.device:
        """Where data and global scale are."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of data and global scale."""
        return self.data.nbytes + self.global_scale.nbytes

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedNvfp4Weight:
        """Return the weight on a device; itself if it is there."""
        data = self.data.to(device, non_blocking=non_blocking)
        scale = self.global_scale.to(device, non_blocking=non_blocking)
        moved = data is not self.data or scale is not self.global_scale
        return PackedNvfp4Weight(data, self.n, self.k, scale) if moved else self


def pack(
    codes: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor | float,
    *,
    threads: int | None = None,
) -> PackedNvfp4Weight:
    """Pack an NVFP4 weight on the host.

    codes: E2M1, two a byte (the low nibble is the even k): uint8, int8 or float4_e2m1fn_x2 [N, K/2] or
        [E, N, K/2], K a multiple of 16.
    scales: float8_e4m3fn [N, K/16] or [E, N, K/16], row-major, neither negative (-0 is) nor NaN.
    global_scale: a multiplier, positive and finite: a number, or float32 of one element, or of E.
    threads: default: as many as torch uses.

    CPU tensors whose last dimension is contiguous. Of the inputs nothing is kept but a copy of the global
    scales. Raises ArgumentError before anything is allocated.
    """
    shape = weight_shape(codes, scales)
    factors = global_scales(global_scale, shape).clone()
    for name, tensor in {"codes": codes, "scales": scales, "global_scale": factors}.items():
        if tensor.device.type != "cpu":
            raise ArgumentError(f"{name} is on {tensor.device}; pack() works on CPU tensors")
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ArgumentError(f"{name} is {describe(tensor)}: its last dimension must be contiguous")
    require_scales(scales)
    require_global_scales(factors)
    *lead, n, k = shape
    packed = torch.empty((*lead, *layout.units(n, k), layout.UNIT_BYTES), dtype=torch.uint8)

    source = _matrices(codes.view(torch.uint8)), _matrices(scales.view(torch.uint8))
    _in_threads(_pack_rows, source, _matrices(packed.flatten(-2)), n, k, threads)
    return PackedNvfp4Weight(packed, n, k, factors)


def unpack(
    weight: PackedNvfp4Weight, *, threads: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what was packed, byte for byte, on the host, from a weight on any device.

    Codes uint8 [N, K/2], scales float8_e4m3fn [N, K/16] and global scale float32 [1]; for E experts
    [E, N, K/2], [E, N, K/16] and [E].
    """
    weight = weight.to("cpu")
    *lead, n, k = weight.shape
    codes = torch.empty((*lead, n, k // 2), dtype=torch.uint8)
    scales = torch.empty((*lead, n, k // layout.BLOCK), dtype=torch.uint8)

    target = _matrices(codes), _matrices(scales)
    _in_threads(_unpack_rows, target, _matrices(weight.data.flatten(-2)), n, k, threads)
    return codes, scales.view(torch.float8_e4m3fn), weight.global_scale.clone()


def concatenate(weights: Sequence[PackedNvfp4Weight]) -> PackedNvfp4Weight:
    """Put weights [N_i, K] of one global scale on top of each other, for projections that run as one.

    Raises ArgumentError where that is not exact: different K or global scales; and for all but the last N, N that
    is no multiple of 16. Reads the global scales.
    """
    first, *others = weights
    for weight in weights:
        if weight.experts is not None or weight.k != first.k:
            raise ArgumentError(
                f"the weights are {[w.shape for w in weights]}; only matrices [N, K] of the same K become one"
            )
    factors = [weight.global_scale.item() for weight in weights]
    if len(set(factors)) > 1:
        raise ArgumentError(
            f"the weights have global scales {factors}; one weight has one, and E2M1 and E4M3 cannot take up the "
            "ratios without loss. Keep the weights apart, as nvfp4_linear.fused() does"
        )
    if any(weight.n % layout.UNIT_ROWS for weight in weights[:-1]):
        raise ArgumentError(
            f"N is {[weight.n for weight in weights]}; all but the last must be multiples of {layout.UNIT_ROWS}"
        )
    if not others:
        return first
    data = torch.cat([weight.data for weight in weights])
    return PackedNvfp4Weight(data, sum(weight.n for weight in weights), first.k, first.global_scale)


# Checks, which repacking on a device shares


def weight_shape(codes: torch.Tensor, scales: torch.Tensor) -> tuple[int, ...]:
    """Return (N, K) or (E, N, K), or refuse codes and scales of wrong types or shapes."""
    if codes.dtype not in CODE_DTYPES or codes.ndim not in (2, 3):
        raise ArgumentError(
            f"codes are {describe(codes)}; supported are uint8, int8 and float4_e2m1fn_x2 of [N, K/2] or "
            "[E, N, K/2], two E2M1 codes a byte"
        )
    *lead, half = codes.shape
    k = 2 * half
    if k % layout.BLOCK:
        raise ArgumentError(
            f"K is {k} (codes are {describe(codes)}); it must be a multiple of {layout.BLOCK}. Pad it with zeros"
        )
    if not codes.numel():
        raise ArgumentError(f"codes are {describe(codes)}: there is nothing to pack")
    wanted = [*lead, k // layout.BLOCK]
    if scales.dtype != torch.float8_e4m3fn or list(scales.shape) != wanted:
        raise ArgumentError(
            f"scales are {describe(scales)}; codes of {list(codes.shape)} take float8_e4m3fn {wanted}, "
            "row-major. Bring swizzled or transposed scales to row-major first"
        )
    return (*lead, k)


def global_scales(
    given: torch.Tensor | float, shape: tuple[int, ...], device: torch.device | None = None
) -> torch.Tensor:
    """Return global scales for a weight of `shape` as float32 [1], or [E]; one given scale serves every expert.

    device: for a number; a tensor stays where it is, and one of that shape is returned itself.
    """
    count = shape[0] if len(shape) == 3 else 1
    if not isinstance(given, torch.Tensor):
        return torch.full((count,), float(given), device=device)
    if given.dtype != torch.float32 or given.numel() not in (1, count):
        raise ArgumentError(
            f"global_scale is {describe(given)}; a weight of {list(shape)} takes float32 of one element"
            + (f" or [{count}]" if count > 1 else "")
        )
    return given.reshape(-1).expand(count).contiguous()


def require_scales(scales: torch.Tensor) -> None:
    """Refuse block scales that are negative or NaN. Reads the values."""
    raw = scales.view(torch.uint8)
    if raw.max() > _MAX_SCALE:
        bad = (raw > _MAX_SCALE).nonzero()
        raise ArgumentError(
            f"{len(bad)} block scales are negative or NaN, the first, {scales[tuple(bad[0])].item()}, at "
            f"{bad[0].tolist()}; UE4M3 has neither. The scales are damaged, or not those of an NVFP4 weight"
        )


def require_global_scales(scales: torch.Tensor) -> None:
    """Refuse global scales that are not positive and finite. Reads the values."""
    if not (torch.isfinite(scales) & (scales > 0)).all():
        raise ArgumentError(f"global_scale is {scales.tolist()}; it must be positive and finite")


# Blocks of rows


def _matrices(tensor: torch.Tensor) -> _Bytes:
    """Bytes [N, K'] or [E, N, K'] as an array [E, N, K']."""
    array: _Bytes = tensor.numpy()
    return array if array.ndim == 3 else array[None]


def _in_threads(
    step: Callable[[_Bytes, _Bytes, _Bytes, int], None],
    plain: tuple[_Bytes, _Bytes],
    packed: _Bytes,
    n: int,
    k: int,
    threads: int | None,
) -> None:
    """Run step(codes, scales, units, k) on blocks of rows: plain rows [rows, .], units [row blocks, .]."""
    codes, scales = plain
    row_blocks = packed.shape[1]
    stride = max(1, _STEP_BYTES // (layout.UNIT_ROWS * k // 2))

    def parts() -> Iterator[tuple[_Bytes, _Bytes, _Bytes, int]]:
        for expert in range(len(packed)):
            for first in range(0, row_blocks, stride):
                rows = slice(first * layout.UNIT_ROWS, min(n, (first + stride) * layout.UNIT_ROWS))
                yield codes[expert, rows], scales[expert, rows], packed[expert, first : first + stride], k

    with ThreadPoolExecutor(threads or torch.get_num_threads()) as pool:
        for _ in pool.map(lambda part: step(*part), parts()):
            pass


def _pack_rows(codes: _Bytes, scales: _Bytes, packed: _Bytes, k: int) -> None:
    words, unit_scales = _unit_views(packed)
    blocks, kb = words.shape[:2]
    rows = blocks * layout.UNIT_ROWS

    # Two bytes are the four codes of a row in a word.
    quads = _padded(codes, rows, kb * layout.UNIT_K // 2).view("<u2")
    # [row block, row g or g + 8, g, unit, chunk, t and j]
    quads = quads.reshape(blocks, 2, layout.ROW_GROUPS, kb, layout.CHUNKS, -1)
    low, high = _tables(_PACKING)
    bits = low.take(quads[:, 0]) | high.take(quads[:, 1])
    words[...] = bits.transpose(0, 2, 3, 1, 4)

    plain = _padded(scales, rows, kb * layout.UNIT_K // layout.BLOCK)
    plain = plain.reshape(blocks, 2, layout.ROW_GROUPS, kb, layout.CHUNKS, layout.LANE_GROUPS)
    unit_scales[...] = plain.transpose(0, 3, 2, 5, 1, 4)


def _unpack_rows(codes: _Bytes, scales: _Bytes, packed: _Bytes, k: int) -> None:
    words, unit_scales = _unit_views(packed)
    rows = len(words) * layout.UNIT_ROWS

    halves = np.ascontiguousarray(words.transpose(0, 3, 1, 2, 4)).view("<u2")
    low, high = _tables(_UNPACKING)
    quads = (low.take(halves[..., 0::2]) | high.take(halves[..., 1::2])).view("<u2")
    # [row block, g, unit, chunk, t and j, row g or g + 8], of which the last becomes the second
    quads = quads.reshape(*halves.shape[:-1], -1, 2).transpose(0, 5, 1, 2, 3, 4)
    codes[...] = np.ascontiguousarray(quads).view(np.uint8).reshape(rows, -1)[: len(codes), : k // 2]

    plain = unit_scales.transpose(0, 4, 2, 1, 5, 3).reshape(rows, -1)
    scales[...] = plain[: len(scales), : k // layout.BLOCK]


def _unit_views(packed: _Bytes) -> tuple[_Words, _Bytes]:
    """Views of units, bytes [row blocks, .]: words [row block, unit, chunk, g, t and j], and scales
    [row block, unit, g, t, row g or g + 8, chunk]."""
    units = packed.reshape(len(packed), -1, layout.UNIT_BYTES)
    lead = units.shape[:2]
    words = units[..., : layout.SCALES_AT].view("<u4").reshape(*lead, layout.CHUNKS, layout.ROW_GROUPS, -1)
    scales = units[..., layout.SCALES_AT :]
    return words, scales.reshape(*lead, layout.ROW_GROUPS, layout.LANE_GROUPS, 2, layout.CHUNKS)


def _padded(rows: _Bytes, count: int, width: int) -> _Bytes:
    if rows.shape == (count, width):
        return rows
    padded = np.zeros((count, width), np.uint8)
    padded[: rows.shape[0], : rows.shape[1]] = rows
    return padded


# Tables: where the bits of 16 go in a word, for two 16-bit halves of what is looked up

_PACKING = (layout.ROW_LOW, layout.ROW_HIGH)
_BY_WORD_BIT = {bit: i for i, bit in enumerate(layout.ROW_LOW + layout.ROW_HIGH)}
_UNPACKING = tuple(tuple(_BY_WORD_BIT[bit] for bit in range(half, half + 16)) for half in (0, 16))


@cache
def _tables(destinations: tuple[tuple[int, ...], ...]) -> tuple[_Words, ...]:
    index = np.arange(1 << 16, dtype=np.uint32)
    return tuple(
        np.bitwise_or.reduce([(index >> i & 1) << bit for i, bit in enumerate(bits)]) for bits in destinations
    )
