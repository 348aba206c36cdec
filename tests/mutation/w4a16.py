"""The sm80 GEMM with NVFP4 weights as a subject: launched by hand, since a mutant's text is in no manifest."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cute_kernels.build.variant import Variant
from cute_kernels.emulator import Device
from sm80.shape import W4a16Shape
from tests.emulate.direct import SCHEDULES, aligned
from tests.w4a16_cases import Case, Grouped, contiguous_case, masked_case, random_case, wrong

POISON = 0xFB
AROUND = 0xFF  # NaN, between the rows of X


@dataclass(frozen=True)
class Division:
    """A problem, and how its K steps are shared out: CTAs, tiles that each does whole, K steps of a share of the rest.

    m: rows of X; of experts: rows of each. alignment: contiguous: rows from which experts begin; masked: room of each.
    cut: contiguous: rows that X does not have behind the last expert, up to the next multiple of `alignment`.
    ldd, ldx: elements from a row of D and of X to the next; ldx, where it is 0: k. schedules: under which it is run.
    """

    m: int | tuple[int, ...]
    n: int
    k: int
    ldd: int
    ctas: int
    whole: int
    share: int
    alignment: int = 1
    cut: int = 0
    ldx: int = 0
    schedules: tuple[str, ...] = SCHEDULES


class Problem(NamedTuple):
    """x, product, size: of all rows. m, matrices: rows of a matrix of X and D, and how many there are. used: rows of
    D that are to be written. layout: as the kernel takes it."""

    case: Case
    m: int
    matrices: int
    used: torch.Tensor
    layout: torch.Tensor


@functools.lru_cache(maxsize=64)
def _problem(layout: str, m: int | tuple[int, ...], n: int, k: int, alignment: int, cut: int) -> Problem:
    if isinstance(m, int):
        case = random_case(m, n, k)
        return Problem(case, m, 1, torch.ones(m, dtype=torch.bool), torch.zeros(0, dtype=torch.int32))
    given: Grouped = {"contiguous": contiguous_case, "masked": masked_case}[layout](list(m), alignment, n, k)
    matrices = len(m) if layout == "masked" else 1
    x, product, size = (part.flatten(0, -2) for part in (given.x, given.product, given.size))
    rows = len(x) - cut
    case = Case(x[:rows], given.weight, product[:rows], size[:rows])
    return Problem(case, rows // matrices, matrices, given.used.flatten()[:rows], given.layout[:rows])


def flaw(variant: Variant, ptx: str, at: Division, schedule: str, arch: str, step_limit: int) -> str:
    """Runs the text on a problem; what is wrong with D, with what lies around it, or with the flags; or ""."""
    shape: W4a16Shape = variant.shape
    problem = _problem(shape.layout, at.m, at.n, at.k, at.alignment, at.cut)
    case, rows, ldx = problem.case, problem.used.numel(), at.ldx or at.k
    memory = {
        "x": aligned(rows * ldx * 2, fill=AROUND),
        "w": _bytes(case.weight.data),
        "global_scale": _bytes(case.weight.global_scale),
        "d": aligned((rows + 2) * at.ldd * 2),
        "slots": aligned(at.ctas * shape.slot_bytes),
        "flags": aligned(at.ctas * shape.flags * 4, fill=0),
        "layout": _bytes(problem.layout),
    }
    memory["x"].reshape(rows, -1)[:, : at.k * 2] = _bytes(case.x).reshape(rows, -1)
    device = Device(arch, num_sms=at.ctas, schedule=schedule, step_limit=step_limit, processes=1)
    for name, data in memory.items():
        if data.nbytes:
            device.register(data.ctypes.data, data.nbytes, name)
    *experts, blocks, units, unit_bytes = case.weight.data.shape
    matrices = (problem.matrices,) if shape.layout == "masked" else ()
    w_strides = (unit_bytes, units * unit_bytes, blocks * units * unit_bytes)
    maps = {
        "map_x": ((at.k, problem.m, *matrices), (ldx * 2, problem.m * ldx * 2)[: 1 + len(matrices)]),
        "map_w": ((unit_bytes // 8, units, blocks, *experts), w_strides[: 2 + len(experts)]),
    }
    numbers = {name: data.ctypes.data for name, data in memory.items()}
    numbers["d"] += at.ldd * 2  # a row before D, and one behind
    numbers |= {"m": problem.m, "n": at.n, "k": at.k, "ldd": at.ldd, "aligned": int(at.ldd % 8 == 0)}
    numbers |= {
        "ldx": ldx,
        "x_matrix_stride": problem.m * ldx,
        "whole": at.whole,
        "share": at.share,
        "experts": len(case.weight.global_scale),
        "matrix_stride": problem.m * at.ldd,
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
    # W is constant, so its first loads need not wait for the grid before; they do where experts are to be read first.
    early = ("bulk.tensor.3d", "griddepcontrol.wait")
    allowed = shape.layout == "dense"
    if not all(allowed and all(part in warning for part in early) for warning in report.warnings):
        return "warning"
    if memory["flags"].any():
        return "flags left behind"
    room = memory["d"].reshape(rows + 2, at.ldd * 2)
    if (room[[0, -1]] != POISON).any() or (room[:, at.n * 2 :] != POISON).any():
        return "wrote outside D"
    room, used = room[1:-1, : at.n * 2], problem.used
    if (room[~used.numpy()] != POISON).any():
        return "wrote rows that are nobody's"
    d = torch.from_numpy(room.copy()).view(case.x.dtype)
    used_case = Case(case.x[used], case.weight, case.product[used], case.size[used])
    return "wrong result" if wrong(d[used], used_case) else ""


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
