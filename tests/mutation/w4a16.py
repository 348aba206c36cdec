"""The sm80 GEMM with NVFP4 weights as a subject: launched by hand, since a mutant's text is in no manifest."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cute_kernels.build.variant import Variant
from cute_kernels.emulator import Device
from sm80.shape import W4a16Shape
from tests.emulate.direct import aligned
from tests.w4a16_cases import Case, random_case, wrong

POISON = 0xFB


@dataclass(frozen=True)
class Division:
    """A problem, and how its K steps are shared out: CTAs, tiles that each does whole, K steps of a share of the rest.

    ldd: elements from a row of D to the next.
    """

    m: int
    n: int
    k: int
    ldd: int
    ctas: int
    whole: int
    share: int

    @functools.cached_property
    def case(self) -> Case:
        return random_case(self.m, self.n, self.k)


def flaw(variant: Variant, ptx: str, at: Division, schedule: str, arch: str, step_limit: int) -> str:
    """Runs the text on a problem; what is wrong with D, with what lies around it, or with the flags; or ""."""
    shape: W4a16Shape = variant.shape
    x, weight = at.case.x, at.case.weight
    memory = {
        "x": _bytes(x),
        "w": _bytes(weight.data),
        "global_scale": _bytes(weight.global_scale),
        "d": aligned((at.m + 2) * at.ldd * 2),
        "slots": aligned(at.ctas * shape.slot_bytes),
        "flags": aligned(at.ctas * shape.flags * 4, fill=0),
    }
    device = Device(arch, num_sms=at.ctas, schedule=schedule, step_limit=step_limit)
    for name, data in memory.items():
        device.register(data.ctypes.data, data.nbytes, name)
    blocks, units, unit_bytes = weight.data.shape
    maps = {
        "map_x": ((at.k, at.m), (at.k * 2,)),
        "map_w": ((unit_bytes // 8, units, blocks), (unit_bytes, units * unit_bytes)),
    }
    numbers = {name: data.ctypes.data for name, data in memory.items()}
    numbers["d"] += at.ldd * 2  # a row before D, and one behind
    numbers |= {"m": at.m, "n": at.n, "k": at.k, "ldd": at.ldd, "aligned": int(at.ldd % 8 == 0)}
    numbers |= {
        "ldx": at.k,
        "x_matrix_stride": 0,
        "whole": at.whole,
        "share": at.share,
        "layout": 0,
        "experts": 1,
        "matrix_stride": 0,
    }
    params = [
        _tensor_map(param.tensor_map, memory[param.name.removeprefix("map_")], *maps[param.name])
        if param.tensor_map
        else numbers[param.name].to_bytes(param.nbytes, "little")
        for param in variant.params
    ]
    report = device.launch(
        ptx, None, (at.ctas, 1, 1), variant.block, variant.cluster, variant.dynamic_shared, params
    )
    # W is constant, so its first loads need not wait for the grid before.
    if any(
        "bulk.tensor.3d" not in warning or "griddepcontrol.wait" not in warning for warning in report.warnings
    ):
        return "warning"
    if memory["flags"].any():
        return "flags left behind"
    room = memory["d"].reshape(at.m + 2, at.ldd * 2)
    if (room[[0, -1]] != POISON).any() or (room[:, at.n * 2 :] != POISON).any():
        return "wrote outside D"
    d = torch.from_numpy(room[1:-1, : at.n * 2].copy()).view(torch.bfloat16)
    return "wrong result" if wrong(d, at.case) else ""


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    data = aligned(tensor.nbytes)
    data[:] = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return data


def _tensor_map(
    spec: Any, memory: NDArray[np.uint8], dims: tuple[int, ...], strides: tuple[int, ...]
) -> bytes:
    return Device.encode_tensor_map(
        spec.dtype, memory.ctypes.data, dims, strides, spec.box, (), "none", spec.swizzle, spec.l2_promotion
    )
