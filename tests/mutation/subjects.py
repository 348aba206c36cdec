"""The kernels whose mutants are judged, each with a problem that reaches all of its code."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch

import sm80
import sm100
from cute_kernels import nvfp4_weight
from cute_kernels.build.variant import Variant
from cute_kernels.emulator import Device
from cute_kernels.trial_problems import Problem
from sm100.shape import Shape
from tests.emulate.direct import SCHEDULES, aligned, gemm, relative_error
from tests.mutation import operations, w4a16, w4a16_cp_async, w4a16_mma, w4a16_wgmma
from tests.mutation.arithmetic import arithmetic, everything, inline, inline_constants
from tests.mutation.mutants import Mutant, mutants, synchronisation
from tests.mutation.w4a16 import Division
from tests.nvfp4_cases import expected_bits, packable, random_operands

STEP_LIMIT = 3_000_000
Launch = tuple[Any, ...]  # a schedule, and what else a subject's launches differ in


class Subject(ABC):
    """A kernel and the launches that judge it."""

    variant: Variant
    arch: str
    launches: Sequence[Launch]  # those that are cheap and find much come first

    @abstractmethod
    def mutants(self, ptx: str) -> list[Mutant]:
        """All mutants of the kernel's PTX."""

    @abstractmethod
    def flaw(self, ptx: str, launch: Launch) -> str:
        """Runs the text; what is wrong with the result or worth a warning, or ""."""


class Gemm(Subject):
    """The SM100 GEMM, with few stages, so that every barrier goes through several phases in a small problem.

    One CTA, or one pair, has all six tiles; M, N and K leave tails, and K has more tiles than there are stages.
    In the problem `first` it has an odd number of K tiles, so that who waits in the end for all stages to be empty
    begins with the second one.
    shares: where CTAs share tiles, K tiles of each CTA, in one launch after the other; three CTAs at a time then.
    """

    arch = "sm_100a"

    def __init__(
        self,
        problem: tuple[int, int, int],
        tolerance: float,
        shares: tuple[int, ...] = (0,),
        first: tuple[int, int, int] = (72, 16, 64),
        stages: int = 2,
        **shape: Any,
    ) -> None:
        self.tolerance = tolerance
        self.launches = tuple(product(SCHEDULES, (first, problem), shares))
        self.shape = Shape(stages=stages, **shape)
        name = {2: "two_stages", 3: "three_stages"}[stages]
        self.variant = dataclasses.replace(sm100.gemm_variant(self.shape), name=name)

    def mutants(self, ptx: str) -> list[Mutant]:
        return mutants(ptx, synchronisation)

    def flaw(self, ptx: str, launch: Launch) -> str:
        schedule, (m, n, k), share = launch
        sms = 3 if share else self.shape.cta_group
        try:
            result, exact, report = gemm(
                self.variant, ptx, m, n, k, schedule, num_sms=sms, step_limit=STEP_LIMIT, share=share
            )
        except AssertionError as left:
            return str(left)
        if report.warnings:
            return "warning"
        return "" if relative_error(result, exact) < self.tolerance else "wrong result"


class Elementwise(Subject):
    """A kernel of loads and stores that waits for nothing, held against the right bytes, and none beside them."""

    arch = "sm_90a"

    @abstractmethod
    def case(self, launch: Launch) -> Case:
        """What a launch has, and is to write."""

    def mutants(self, ptx: str) -> list[Mutant]:
        return mutants(ptx, arithmetic, inline_constants)

    def flaw(self, ptx: str, launch: Launch) -> str:
        schedule, *_ = launch
        case, margin = self.case(launch), 256
        out = aligned(len(case.expected) + 2 * margin)
        before = out.copy()
        device = Device(self.arch, schedule=schedule, step_limit=STEP_LIMIT)
        memory = [aligned(tensor.nbytes) for tensor in case.inputs]
        for where, tensor in zip(memory, case.inputs, strict=True):
            where[:] = tensor.contiguous().view(torch.uint8).numpy().ravel()
            device.register(where.ctypes.data, where.nbytes)
        device.register(out.ctypes.data, out.nbytes)
        addresses = [where.ctypes.data for where in memory] + [out.ctypes.data + margin]
        params = [address.to_bytes(8, "little") for address in addresses]
        params += [
            case.numbers[param.name].to_bytes(param.nbytes, "little")
            for param in self.variant.params[len(params) :]
        ]
        report = device.launch(ptx, None, case.grid, self.variant.block, params=params)
        if report.warnings:
            return "warning"
        before[margin:-margin] = case.expected
        return "" if (out == before).all() else "wrong result"


class Case(NamedTuple):
    """inputs: in the order of the kernel's first parameters, before the output. numbers: the others, by name.
    expected: bytes of the output."""

    inputs: tuple[torch.Tensor, ...]
    numbers: dict[str, int]
    grid: tuple[int, int, int]
    expected: np.ndarray


class Dequantize(Elementwise):
    """NVFP4 to BF16, bit for bit: two experts, each with whole CTAs and a part of one."""

    variant = sm80.dequantize_variant()
    experts, blocks = 2, 321
    launches = (("eager",),)

    def case(self, launch: Launch) -> Case:
        given = random_operands(self.experts, self.blocks, 16, experts=True)
        index = np.arange(self.experts * self.blocks)
        special = np.array([0x80, 0x7F, 0xFF, 0x00])[
            index // 8 % 4
        ]  # signed zeros, NaN: in every part of a tile
        codes = torch.from_numpy(np.where(index % 8, index * 5 % 256, special))
        given.scales.view(torch.uint8)[:] = codes.view(self.experts, self.blocks, 1)
        ctas = -(-self.blocks // self.variant.shape.blocks_per_cta)
        expected = expected_bits(given).contiguous().view(-1).numpy().view(np.uint8)
        return Case(given, {"blocks": self.blocks}, (ctas, self.experts, 1), expected)


class Repack(Elementwise):
    """NVFP4 weights into units, byte for byte: two experts of three row blocks and ten units, two CTAs a row block.

    Rows end in the upper half of a unit in one case, in the lower one in another; so do blocks in its chunks. In the
    third everything is whole: units, and CTAs.
    """

    variant = sm80.repack_variant()
    experts = 2
    launches = (("eager", 37, 1168), ("eager", 45, 1232), ("eager", 32, 1024))

    def case(self, launch: Launch) -> Case:
        _, n, k = launch
        codes, scales = packable(self.experts, n, k)
        expected = nvfp4_weight.pack(codes, scales, 1.0).data
        row_blocks, units = expected.shape[1:3]
        ctas = row_blocks * -(-units // self.variant.shape.warps)
        grid = (ctas, self.experts, 1)
        return Case((codes, scales), {"n": n, "blocks": k // 16}, grid, expected.view(-1).numpy())


class W4a16(Subject):
    """A GEMM with NVFP4 weights, on problems that leave nothing of it out (w4a16.py)."""

    step_limit = 300_000

    def __init__(self, variant: Variant, arch: str, divisions: tuple[Division, ...]) -> None:
        self.variant, self.arch = variant, arch
        pairs = product(SCHEDULES, divisions)
        self.launches = tuple((schedule, at) for schedule, at in pairs if schedule in at.schedules)

    def mutants(self, ptx: str) -> list[Mutant]:
        return mutants(ptx, everything, inline)

    def flaw(self, ptx: str, launch: Launch) -> str:
        schedule, at = launch
        return w4a16.flaw(self.variant, ptx, at, schedule, self.arch, self.step_limit)


class Operation(Subject):
    """A variant of the SM100 GEMM as its operation runs it (operations.py)."""

    arch = operations.ARCH

    def __init__(self, shape: Shape, problems: tuple[Problem, ...]) -> None:
        self.variant = operations.variant_of(shape)
        self.launches = tuple(product(SCHEDULES, problems))

    def mutants(self, ptx: str) -> list[Mutant]:
        return mutants(ptx, synchronisation)

    def flaw(self, ptx: str, launch: Launch) -> str:
        schedule, problem = launch
        return operations.flaw(self.variant, problem, ptx, schedule, STEP_LIMIT)


_TN: dict[str, Any] = {
    "tile_n": 128,
    "d_dtype": "f32",
    "accumulate": False,
    "family_dtype": "bf16",
    "a_major": "mn",
    "b_major": "mn",
}
_PAIR: dict[str, Any] = {"tile_n": 64, "tile_m": 256, "cta_group": 2, "d_dtype": "f32", "accumulate": False}
_W4A16 = (*w4a16_mma.SUBJECTS, *w4a16_wgmma.SUBJECTS, *w4a16_cp_async.SUBJECTS)
SUBJECTS: dict[str, Subject] = {
    "gemm": Gemm((200, 136, 1056), 1e-5, tile_n=64, d_dtype="f32", accumulate=False),
    "gemm_three_stages": Gemm((200, 136, 1056), 1e-5, stages=3, tile_n=64, d_dtype="f32", accumulate=False),
    "gemm_c": Gemm((200, 136, 1056), 1e-5, tile_n=64, d_dtype="f32", accumulate=True),
    "gemm_bf16": Gemm((296, 200, 1056), 3e-3, tile_n=128, d_dtype="bf16", accumulate=False),
    "gemm_tn": Gemm((296, 264, 296), 1e-5, first=(320, 320, 168), **_TN),
    "gemm_pair": Gemm((400, 136, 1056), 1e-5, **_PAIR),
    "gemm_split_k": Gemm(
        (200, 136, 1056), 1e-5, (2, 17), tile_n=64, d_dtype="f32", accumulate=False, split_k=True
    ),
    "gemm_swap_ab": Gemm((200, 72, 1056), 1e-5, tile_n=32, d_dtype="f32", accumulate=True, swap_ab=True),
    **{name: Operation(*of) for name, of in operations.OPERATIONS.items()},
    **{name: W4a16(*which) for name, which in _W4A16},
    "nvfp4_dequantize": Dequantize(),
    "nvfp4_repack": Repack(),
}
