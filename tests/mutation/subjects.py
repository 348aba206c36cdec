"""The kernels whose mutants are judged, each with a problem that reaches all of its code."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

import sm80
import sm100
from cute_kernels.build.variant import Variant
from cute_kernels.emulator import Device
from sm100.shape import Shape
from tests.emulate.direct import aligned, compile_ptx, gemm, relative_error
from tests.mutation.arithmetic import arithmetic, inline_constants
from tests.mutation.mutants import Mutant, mutants, synchronisation
from tests.nvfp4_cases import expected_bits, random_operands

STEP_LIMIT = 3_000_000


class Subject(ABC):
    """A kernel and what it is run on."""

    schedules: tuple[str, ...]

    @abstractmethod
    def mutants(self) -> list[Mutant]:
        """All mutants of the kernel."""

    @abstractmethod
    def flaw(self, ptx: str, schedule: str) -> str:
        """Runs the text; what is wrong with the result or worth a warning, or ""."""


class Gemm(Subject):
    """The SM100 GEMM, with two stages, so that every barrier goes through several phases in a small problem.

    One CTA has all six tiles; M, N and K leave tails, and K has more tiles than there are stages.
    """

    schedules = ("eager", "lazy", "random")

    def __init__(self, problem: tuple[int, int, int], tolerance: float, **shape: Any) -> None:
        self.problem, self.tolerance = problem, tolerance
        self.shape = Shape(stages=2, **shape)

    def variant(self) -> Variant:
        return dataclasses.replace(sm100.gemm_variant(self.shape), name="two_stages")

    def mutants(self) -> list[Mutant]:
        return mutants(compile_ptx(self.variant()), synchronisation)

    def flaw(self, ptx: str, schedule: str) -> str:
        result, exact, report = gemm(
            self.variant(), ptx, *self.problem, schedule, num_sms=1, step_limit=STEP_LIMIT
        )
        if report.warnings:
            return "warning"
        return "" if relative_error(result, exact) < self.tolerance else "wrong result"


class Dequantize(Subject):
    """NVFP4 to BF16, bit for bit: two experts, each with whole CTAs and a part of one."""

    schedules = ("eager",)  # it waits for nothing
    experts, blocks = 2, 321
    arch = "sm_90a"

    def mutants(self) -> list[Mutant]:
        ptx = compile_ptx(sm80.dequantize_variant(), self.arch)
        return mutants(ptx, arithmetic, inline_constants)

    def flaw(self, ptx: str, schedule: str) -> str:
        variant = sm80.dequantize_variant()
        given = random_operands(self.experts, self.blocks, 16, experts=True)
        index = np.arange(self.experts * self.blocks)
        special = np.array([0x80, 0x7F, 0xFF, 0x00])[
            index // 8 % 4
        ]  # signed zeros, NaN: in every part of a tile
        codes = torch.from_numpy(np.where(index % 8, index * 5 % 256, special))
        given.scales.view(torch.uint8)[:] = codes.view(self.experts, self.blocks, 1)
        margin = 256
        out = aligned(self.experts * self.blocks * 32 + 2 * margin)
        before = out.copy()
        device = Device(self.arch, schedule=schedule, step_limit=STEP_LIMIT)
        memory = [aligned(t.numel() * t.element_size()) for t in given]
        for where, tensor in zip(memory, given, strict=True):
            where[:] = tensor.contiguous().view(torch.uint8).numpy().ravel()
            device.register(where.ctypes.data, where.nbytes)
        device.register(out.ctypes.data, out.nbytes)
        addresses = [where.ctypes.data for where in memory] + [out.ctypes.data + margin]
        params = [value.to_bytes(8, "little") for value in (*addresses, self.blocks)]
        ctas = -(-self.blocks // variant.shape.blocks_per_cta)
        report = device.launch(ptx, None, (ctas, self.experts, 1), variant.block, params=params)
        if report.warnings:
            return "warning"
        before[margin:-margin] = expected_bits(given).contiguous().view(-1).numpy().view(np.uint8)
        return "" if (out == before).all() else "wrong result"


SUBJECTS: dict[str, Subject] = {
    "gemm": Gemm((200, 136, 1056), 1e-5, tile_n=64, d_dtype="f32", accumulate=False),
    "gemm_c": Gemm((200, 136, 1056), 1e-5, tile_n=64, d_dtype="f32", accumulate=True),
    "gemm_bf16": Gemm((296, 200, 1056), 3e-3, tile_n=128, d_dtype="bf16", accumulate=False),
    "nvfp4_dequantize": Dequantize(),
}
