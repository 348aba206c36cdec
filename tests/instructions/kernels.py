"""Small hand-written PTX kernels for tests: a body of instructions around `in` and `out` pointers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import Device, Report

SCHEDULES = ("eager", "lazy", "random")

_HEAD = """
.version 9.0
.target {arch}
.address_size 64
.extern .shared .align 1024 .b8 smem[];
.visible .entry kernel(.param .u64 p_out, .param .u64 p_in, .param .align 64 .b8 p_map[128]) {directives}
{{
    .reg .pred %p<20>;
    .reg .b16 %h<20>;
    .reg .b32 %r<200>;
    .reg .f32 %f<20>;
    .reg .b64 %d<40>;
    ld.param.u64 %d0, [p_out];
    ld.param.u64 %d1, [p_in];
    mov.u32 %r0, %tid.x;
    mov.b32 %r1, smem;
    mul.wide.u32 %d2, %r0, 4;
    add.s64 %d3, %d0, %d2;   // &out[tid], 4-byte elements
    add.s64 %d4, %d1, %d2;   // &in[tid]
"""


def module(body: str, arch: str = "sm_100a", directives: str = "") -> str:
    """A module with one kernel. The body finds: %r0 thread, %r1 shared memory, %d0 out, %d1 in, %d3 &out[thread],
    %d4 &in[thread] (4-byte elements), p_map a tensor map. directives: of the kernel, such as .maxnreg."""
    return _HEAD.format(arch=arch, directives=directives) + body + "\n    ret;\n}\n"


def run(
    body: str,
    source: NDArray[np.generic] | None = None,
    out_words: int = 256,
    threads: int = 32,
    shared: int = 4096,
    grid: int = 1,
    cluster: int = 1,
    schedule: str = "random",
    seed: int = 0,
    tensor_map: bytes = bytes(128),
    arch: str = "sm_100a",
    num_sms: int = 0,
    tolerate: tuple[str, ...] = (),
) -> tuple[NDArray[np.uint32], Report]:
    """Runs a body; gives `out` (uint32, 0xFBFBFBFB where nothing was written) and the report."""
    out = np.full(out_words, 0xFBFBFBFB, np.uint32)
    source = np.arange(1024, dtype=np.uint32) if source is None else source
    device = Device(
        arch,
        num_sms=num_sms or max(grid, 1),
        schedule=schedule,
        seed=seed,
        step_limit=2_000_000,
        tolerate=tolerate,
    )
    device.register(out.ctypes.data, out.nbytes, "out")
    device.register(source.ctypes.data, source.nbytes, "in")
    params = [out.ctypes.data.to_bytes(8, "little"), source.ctypes.data.to_bytes(8, "little"), tensor_map]
    report = device.launch(
        module(body, arch), "kernel", (grid, 1, 1), (threads, 1, 1), (cluster, 1, 1), shared, params
    )
    return out, report
