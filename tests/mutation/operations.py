"""Variants of the SM100 GEMM whose mutants are judged by what their operations give: groups, quantized D, batches, ...

Each has two stages, so that every barrier goes through several phases in a small problem, and is the only kernel that
its operation finds. One CTA, or one pair, has all tiles; M, N and K leave tails. The first problem of each has an odd
number of K tiles, so that who waits in the end for all stages to be empty begins with the second one; it is also small,
and so kills most mutants in little time.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sm100
from cute_kernels import ops_quantized
from cute_kernels.build.variant import Variant
from cute_kernels.emulator import Device
from cute_kernels.formats import dequantize, quantize_nvfp4
from cute_kernels.runtime import context
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.runtime.manifest import KernelRecord, Library
from cute_kernels.scale_factors import pack_for_kernel, unpack
from cute_kernels.trial_einsum import Einsum
from cute_kernels.trial_grouped import GroupedGemm, QuantizedGroupedGemm
from cute_kernels.trial_heads import HeadSplitGemm
from cute_kernels.trial_k_grouped import KGroupedGemm
from cute_kernels.trial_problems import Gemm, Nvfp4Gemm, Outcome, Problem, QuantizedGemm
from sm100.shape import Shape

ARCH = "sm_100a"
GROUPS = (140, 0, 33)  # rows: a group of two row tiles, none, and less than one
# More groups than a warp has lanes.
MANY = tuple({1: 140, 35: 33, 38: 5}.get(group, 0) for group in range(40))
# A tile each, and the first of 32 groups have but one.
FEW = tuple(5 if group in (3, 35, 38) else 0 for group in range(40))
# More tiles than a warp has lanes; it finds the last ones behind 32 groups that have none, and 32 that have one.
FAR = tuple(5 if group < 34 or group in (68, 99) else 0 for group in range(100))
# Lengths along K: a warp finds a tile only after 64 without K, once at first and once behind another tile.
FAR_KS = tuple(32 if group in (70, 170) else 0 for group in range(230))


class RowsOfNoneFirst(GroupedGemm):
    """Contiguous groups behind `room`, which is a tile of no group's rows."""

    def given_layout(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """What the operation takes as layout, and the group of each row of A: here they are the same."""
        _, owner = super().given_layout(generator)
        return owner.roll(self.room), owner.roll(self.room)


class FarApart(GroupedGemm):
    """Contiguous groups of which a warp finds the next tile only after 64 of no group's rows, which are two turns of
    its lanes: one in the third 32 tiles, one in the sixth, and some of none behind. For tiles of 128 rows."""

    def given_layout(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """What the operation takes as layout, and the group of each row of A: here they are the same."""
        owner = torch.full((self.m,), -1, dtype=torch.int32)
        for group, (tile, rows) in enumerate(zip((66, 165), self.rows, strict=True)):
            owner[tile * 128 : tile * 128 + rows] = group
        return owner, owner


class LateGroupedGemm(RowsOfNoneFirst):
    """See RowsOfNoneFirst."""


class LateQuantizedGroupedGemm(RowsOfNoneFirst, QuantizedGroupedGemm):
    """See RowsOfNoneFirst."""


class FarGroupedGemm(FarApart):
    """See FarApart."""


class FarQuantizedGroupedGemm(FarApart, QuantizedGroupedGemm):
    """See FarApart."""


class TiedNvfp4Gemm(Nvfp4Gemm):
    """Judged bit for bit: sums are exact in float32, and many lie half-way between two elements.

    So blocks take the exact division, and which way it rounds matters.
    """

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make operands with scale factors of one bit; return what runs the operation, and what judges its result."""
        generator = torch.Generator().manual_seed(seed)
        one, given, values = torch.ones(()), [], []
        for rows in (self.m, self.n):
            elements = torch.randint(0, 256, (rows, self.k // 2), generator=generator, dtype=torch.uint8)
            exponents = torch.randint(0, 3, (rows, self.k // 16), generator=generator)
            scales = (2.0**exponents).to(torch.float8_e4m3fn)
            given.append((elements, pack_for_kernel(scales, rows, self.k, gran_k=16), one))
            values.append(dequantize(elements, scales, group=(1, 16), global_scale=one, dtype=torch.float64))
        codes, scales, _ = quantize_nvfp4((values[0] @ values[1].T).float(), global_scale=one)
        found: list[torch.Tensor] = []

        def judge() -> Outcome:
            d, words, _ = found
            factors = unpack(words, self.n // 16).view(torch.uint8)
            right = torch.equal(d, codes) and torch.equal(factors, scales.view(torch.uint8))
            return Outcome(0.0, right, True)

        return lambda: found.extend(ops_quantized.gemm_nt_nvfp4(given[0], given[1], one)), judge


class OneKernel(Library):
    """A folder that holds one kernel, without the folder."""

    def __init__(self, variant: Variant, ptx: str) -> None:
        self.folder, self._ptx = Path("mutants"), ptx
        entry = re.search(r"\.entry (\w+)", ptx)
        assert entry is not None
        record = KernelRecord(
            *(variant.kernel, variant.name, ARCH, variant.shape.config(), entry[1], variant.params),
            *(variant.block, variant.cluster, variant.dynamic_shared),
            registers=128,
            cubin="",
            cubin_sha256="",
            ptx="",
            ptx_sha256="",
        )
        self.records = (record,)

    def read_cubin(self, record: KernelRecord) -> bytes:
        return b""

    def read_ptx(self, record: KernelRecord) -> str:
        return self._ptx


def variant_of(shape: Shape) -> Variant:
    """A shape's variant with two stages."""
    return dataclasses.replace(sm100.gemm_variant(dataclasses.replace(shape, stages=2)), name="two_stages")


def flaw(variant: Variant, problem: Problem, ptx: str, schedule: str, step_limit: int) -> str:
    """Run an operation with this text for its kernel; what is wrong with it, or ""."""
    ctas = variant.cluster[0]
    device = Device(ARCH, num_sms=ctas, schedule=schedule, step_limit=step_limit)
    backend = EmulatorBackend(ARCH, ctas, schedule, device=device)
    run, judge = problem.prepare("cpu", 0)
    before = context._settings.library, context._settings.emulation
    context._settings.library, context._settings.emulation = OneKernel(variant, ptx), backend
    try:
        run()
    finally:
        context._settings.library, context._settings.emulation = before
    assert backend.reports, "the operation did not launch the kernel"
    if any(report.warnings for report in backend.reports):
        return "warning"
    outcome = judge()
    if not outcome.contained:
        return "wrote outside"
    return "" if outcome.right else "wrong result"


def shape(tile_n: int, d_dtype: Any, accumulate: bool = False, operands: str = "mxf4", **more: Any) -> Shape:
    return Shape.fitting(tile_n, d_dtype, accumulate, operands, **more)


# Name: the shape, and problems that one launch each is judged by.
OPERATIONS: dict[str, tuple[Shape, tuple[Problem, ...]]] = {
    "gemm_by_indices": (
        shape(128, "bf16", grouping="indices"),
        (
            LateGroupedGemm("contiguous", (5,), 40, 96, room=128),
            GroupedGemm("contiguous", GROUPS, 136, 608, room=128),
            FarGroupedGemm("contiguous", (5, 7), 40, 96, room=165 * 128),
        ),
    ),
    "gemm_by_sizes": (
        shape(128, "bf16", operands="nvf4", grouping="sizes"),
        (
            GroupedGemm("masked", FEW, 40, 96, "nvf4"),
            GroupedGemm("masked", MANY, 136, 608, "nvf4", room=3),
            GroupedGemm("prefix", MANY, 136, 608, "nvf4", room=8, alignment=36),
            GroupedGemm("prefix", FAR, 40, 96, "nvf4", room=8, alignment=36),
        ),
    ),
    "gemm_swap_ab_by_sizes": (
        shape(32, "bf16", swap_ab=True, grouping="sizes"),
        (
            GroupedGemm("masked", FEW, 40, 96),
            GroupedGemm("masked", tuple(rows // 4 for rows in MANY), 136, 608, room=3),
            GroupedGemm("prefix", FEW, 40, 96, room=8, alignment=36),
            GroupedGemm("prefix", FAR, 40, 96, room=8, alignment=36),
        ),
    ),
    "gemm_pair_by_sizes": (
        shape(128, "bf16", grouping="sizes", cta_group=2),
        (
            GroupedGemm("masked", FEW, 40, 96),
            GroupedGemm("masked", tuple(2 * rows for rows in MANY), 136, 608, room=3),
            GroupedGemm("prefix", FEW, 40, 96, room=8, alignment=36),
            GroupedGemm("prefix", FAR, 40, 96, room=8, alignment=36),
        ),
    ),
    "gemm_by_indices_mxfp8_out": (
        shape(128, "mxf8", operands="mxf8", grouping="indices"),
        (
            LateQuantizedGroupedGemm("contiguous", (5,), 48, 96, "mxf8", room=128),
            QuantizedGroupedGemm("contiguous", GROUPS, 144, 320, "mxf8", room=128),
            FarQuantizedGroupedGemm("contiguous", (5, 7), 48, 96, "mxf8", room=165 * 128),
        ),
    ),
    "gemm_mxfp8_out": (
        shape(128, "mxf8"),
        (QuantizedGemm(72, 48, 96, "mxf8"), QuantizedGemm(200, 144, 1056, "mxf8")),
    ),
    "gemm_nvfp4_out": (
        shape(128, "nvf4", operands="nvf4"),
        (
            TiedNvfp4Gemm(72, 128, 96, "nvf4", False, "nvf4"),
            Nvfp4Gemm(200, 160, 1056, "nvf4", False, "nvf4"),
        ),
    ),
    "gemm_k_grouped": (
        shape(128, "f32", True, "bf16", a_major="mn", b_major="mn", k_grouped=True),
        (
            KGroupedGemm(72, 36, (208, 64)),
            KGroupedGemm(100, 36, (0, 80, 96)),
            KGroupedGemm(200, 136, (176, 0, 144, 16), accumulate=True),
            KGroupedGemm(320, 128, (176, 0, 144, 16), accumulate=True),  # whole blocks: tma.whole_blocks
            KGroupedGemm(128, 64, (208, 64)),  # the same
            KGroupedGemm(32, 32, FAR_KS),
        ),
    ),
    "gemm_k_grouped_nt": (
        shape(128, "f32", True, "bf16", k_grouped=True),
        (
            KGroupedGemm(100, 36, (0, 80), layout="nt"),
            KGroupedGemm(200, 136, (176, 0, 144, 16, 32), accumulate=True, layout="nt"),
            KGroupedGemm(32, 32, FAR_KS, layout="nt"),
        ),
    ),
    "gemm_multicast": (
        shape(128, "bf16", cta_group=2, multicast=True),
        (Gemm(72, 40, 96), Gemm(400, 520, 1056)),
    ),
    "gemm_batched": (
        shape(128, "f32", operands="bf16", batched=True),
        (
            Einsum("bmk,bnk->mn", 1, 72, 40, 40, d_dtype="f32", num_sms=1),
            Einsum("bmk,bnk->mn", 3, 200, 136, 168, d_dtype="f32", num_sms=1),
        ),
    ),
    "gemm_heads": (
        shape(128, "bf16", heads=True),
        (HeadSplitGemm(Gemm(72, 64, 96), (32, 32, 32)), HeadSplitGemm(Gemm(200, 384, 608), (96, 64, 32))),
    ),
    "gemm_clc": (
        shape(128, "bf16", clc=True),
        (Gemm(72, 40, 96, scheduling="clc"), Gemm(296, 200, 1056, scheduling="clc")),
    ),
}
