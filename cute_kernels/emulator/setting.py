"""What all clusters of one launch share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.architecture import Architecture
from cute_kernels.emulator.global_shadow import GlobalShadow
from cute_kernels.emulator.memory import GlobalMemory
from cute_kernels.emulator.program import Program
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.trace import Trace

Dim3 = tuple[int, int, int]


@dataclass(frozen=True)
class LaunchShape:
    """The dimensions of a launch: CTAs, threads, CTAs of a cluster."""

    grid: Dim3
    block: Dim3
    cluster: Dim3

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def warps(self) -> int:
        return -(-self.threads // LANES)

    @property
    def cluster_size(self) -> int:
        return self.cluster[0] * self.cluster[1] * self.cluster[2]


@dataclass(frozen=True)
class Setting:
    """A kernel, its parameters, its memory and the device that it is launched on."""

    program: Program
    shape: LaunchShape
    params: NDArray[np.uint8]
    memory: GlobalMemory
    architecture: Architecture
    num_sms: int
    schedule: str
    seed: int
    step_limit: int
    variables: dict[str, int]  # of the module: their addresses
    global_shadow: GlobalShadow
    trace: Trace | None
    rank: int | None  # among launches side by side
    tolerate: frozenset[str]
    registers_at_entry: int | None  # a thread, as far as setmaxnreg may rely on it
