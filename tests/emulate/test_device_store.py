"""The epilogue's staging, on the emulator: swizzled as TMA takes it, rounded once, C added before."""

from __future__ import annotations

import tempfile
from functools import cache
from typing import Any

import cutlass
import cutlass.cute as cute
import cutlass.experimental.cuda as cuda
import numpy as np
import pytest
import torch
from cutlass import Constexpr, Float32, GridConstant, Int64
from cutlass.experimental import primitives as prims

from cute_kernels.device import ring, tma
from cute_kernels.device.store import add_staged, chunk_offsets, stage
from cute_kernels.emulator import Device

TYPES = {"bf16": (cutlass.BFloat16, torch.bfloat16, 64), "f32": (cutlass.Float32, torch.float32, 128)}


@cute.kernel
def write(
    values: cutlass.Pointer,
    map_c: GridConstant[cuda.TensorMap],
    map_d: GridConstant[cuda.TensorMap],
    dtype: Constexpr[Any],
    add: Constexpr[bool],
) -> None:
    """D = values (+ C) for a box of 32 x 32; values is Float32 [32, 32]."""
    buffer = cutlass.Array(dtype, 32 * 32, space=cutlass.AddressSpace.smem, alignment=1024)
    barrier = cutlass.Array(Int64, 1, space=cutlass.AddressSpace.smem, alignment=8)
    leader, lane = prims.elect_sync(), cute.arch.lane_idx()
    bits: cutlass.Constexpr[int] = dtype.width
    if leader:
        ring.init(barrier, 1, 1)
        prims.fence_mbarrier_init()
    cute.arch.sync_warp()
    if cutlass.const_expr(add):
        if leader:
            prims.mbarrier_arrive_expect_tx(barrier, 32 * 32 * bits // 8)
            tma.load(buffer, map_c, (0, 0), barrier)
        ring.wait(barrier, 0)
    row = [(values + lane * 32 + i).load() for i in range(32)]
    chunks = chunk_offsets(32 * bits // 8, bits // 8)
    if cutlass.const_expr(add):
        row = add_staged(buffer, 0, chunks, row)
    stage(buffer, 0, chunks, row)
    tma.publish()
    cute.arch.sync_warp()
    if leader:
        tma.store(map_d, buffer, (0, 0))
    prims.cp_async_bulk_commit_group()
    prims.cp_async_bulk_wait_group(0)


@cute.jit
def entry(values: cutlass.Pointer, dtype: Constexpr[Any], add: Constexpr[bool]) -> None:
    any_map = tma.placeholder_map()
    write(values, any_map, any_map, dtype, add).launch(grid=(1, 1, 1), block=(32, 1, 1))


@cache
def compiled(name: str, add: bool) -> str:
    values = cute.runtime.make_ptr(Float32, 1024, cute.AddressSpace.gmem, assumed_align=16)
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch sm_100a --keep-ptx --dump-dir={folder}"
        text: str = cute.compile(entry, values, TYPES[name][0], add, options=options).__ptx__
    return text


@pytest.mark.parametrize("schedule", ["lazy", "random"])
@pytest.mark.parametrize(("name", "add"), [("bf16", False), ("bf16", True), ("f32", False)])
def test_a_box_leaves_as_it_should(name: str, add: bool, schedule: str) -> None:
    _, dtype, row_bytes = TYPES[name]
    torch.manual_seed(1)
    values, c = torch.randn(32, 32), torch.randn(32, 32).to(dtype)
    d = torch.full((32, 32), 7.0, dtype=dtype)
    device = Device("sm_100a", num_sms=1, schedule=schedule, seed=2)
    for tensor in (values, c, d):
        device.register(tensor.data_ptr(), tensor.nbytes)
    maps = [
        Device.encode_tensor_map(
            name, t.data_ptr(), (32, 32), (row_bytes,), (32, 32), swizzle=f"{row_bytes}B"
        )
        for t in (c, d)
    ]
    params = [values.data_ptr().to_bytes(8, "little"), *maps]
    device.launch(compiled(name, add), None, (1, 1, 1), (32, 1, 1), (1, 1, 1), 32 * row_bytes + 8, params)
    expected = (values + c.float() if add else values).to(dtype)
    assert np.array_equal(d.float().numpy(), expected.float().numpy())
