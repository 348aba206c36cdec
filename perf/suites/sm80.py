"""NVFP4 weights x BF16 activations on mma.sync: w4a16_gemm_nt against cuBLAS in BF16, Humming, and a plain read.

Weights are cold: calls go in turns through copies that are together at least 335 MB, 50 or more calls in a graph.
Activations and outputs stay the same, as a model has just written the one and will read the other. "plain read" reads
the packed bytes and does nothing else: the floor for few rows. Before anything counts, a result is compared with
float64. No DSL: the cubins are those of CUTE_KERNELS_CUBINS or build/, those of `build --package perf` among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from cute_kernels import formats, ops, w4a16_layout
from perf import ceilings as reached
from perf.peers import HUMMING, Humming, UnavailableError
from perf.suite import Case, Selection
from perf.timing import Action

OURS, READ, CUBLAS = "w4a16_gemm_nt", "plain read", "cuBLAS bf16"
SHAPES = ("4096x4096", "14336x4096", "4096x14336", "21504x5376", "5376x21504", "28672x8192")
ROWS = (1, 4, 16, 32, 64, 128, 256, 1024, 4096)
COLD_BYTES = 335_000_000  # that the copies of a weight have together
LAUNCHES = 50
# Relative to float64. Rounding the result to BF16 gives 1.7e-3; peers round the scaled weights to BF16 as well.
TOLERANCE, PEER_TOLERANCE = 2.5e-3, 6e-3
ELEMENT_TOLERANCE = 0.02  # of the root mean square, beside the rounding of an element: FP32 sums in any order


@dataclass(frozen=True)
class Problem:
    """Activations and a weight, and the product.

    codes, scales, global_scale: the weight [N, K] as checkpoints have it. x: bfloat16 [M, K]. wanted: float64 [M, N].
    values: of the weight, bfloat16 [N, K].
    """

    codes: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor
    x: torch.Tensor
    wanted: torch.Tensor
    values: torch.Tensor


def extents(shape: str) -> tuple[int, int]:
    """N and K of "NxK"."""
    n, k = shape.split("x")
    return int(n), int(k)


def packed_bytes(n: int, k: int) -> int:
    """Of a packed weight: what a product must read of it."""
    blocks, units = w4a16_layout.units(n, k)
    return blocks * units * w4a16_layout.UNIT_BYTES


def copies(nbytes: int) -> int:
    """How many copies of a weight of so many bytes take turns."""
    return max(2, -(-COLD_BYTES // nbytes))


def draw(n: int, k: int, rows: int, device: torch.device, seed: int = 0) -> Problem:
    """Random codes, all scales that UE4M3 has, normal activations; and their product by float64."""
    random = torch.Generator(device=device).manual_seed(seed)

    def codes(high: int, columns: int) -> torch.Tensor:
        return torch.randint(0, high, (n, columns), dtype=torch.uint8, device=device, generator=random)

    packed, scales = codes(256, k // 2), codes(127, k // formats.NVFP4_GROUP).view(torch.float8_e4m3fn)
    scale = (torch.rand(1, device=device, generator=random) + 0.5) / 256
    x = torch.randn(rows, k, device=device, generator=random).to(torch.bfloat16)
    wanted = torch.empty(rows, n, dtype=torch.float64, device=device)
    values = torch.empty(n, k, dtype=torch.bfloat16, device=device)
    exact = x.double()
    step = max(1, 2**25 // k)  # rows; decoding needs some 20 times the memory of what comes out
    for start in range(0, n, step):
        part = slice(start, start + step)
        decoded = formats.dequantize(
            packed[part], scales[part], group=(1, formats.NVFP4_GROUP), global_scale=scale[0]
        )
        wanted[:, part] = exact @ decoded.double().T
        values[part] = decoded
    return Problem(packed, scales, scale, x, wanted, values)


def verdict(run: Callable[[], object], out: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> str:
    """Run once into a poisoned output; return "" or how the result differs."""
    out.fill_(torch.nan)
    run()
    difference = (out.double() - wanted).abs_()
    relative = float(difference.norm() / wanted.norm())
    rms = float(wanted.norm()) / wanted.numel() ** 0.5
    # Both comparisons are false for NaN.
    far = int((~(difference <= tolerance * 2 * wanted.abs() + ELEMENT_TOLERANCE * rms)).sum())
    if relative <= tolerance and not far:
        return ""
    return f"relative error {relative:.1e} (at most {tolerance:.1e}), {far} elements are far off"


Maker = Callable[[torch.Tensor, torch.Tensor], list[Action]]
"""From x [M, K] and out [M, N] to a launch for each copy of the weight."""


def ours(problem: Problem, count: int) -> Maker:
    """The operation, as users call it."""
    first = ops.nvfp4_repack(problem.codes, problem.scales, problem.global_scale)
    copied = [replace(first, data=first.data.clone()) for _ in range(count - 1)]
    return lambda x, out: [partial(ops.w4a16_gemm_nt, x, weight, out) for weight in (first, *copied)]


def plain_read(problem: Problem) -> Maker:
    """Random bytes of the packed weight's size, only read."""
    nbytes = packed_bytes(*problem.values.shape)
    device = problem.values.device
    sets = [torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=device) for _ in range(copies(nbytes))]
    actions = reached.plain_read(sets)
    return lambda x, out: actions


def cublas(problem: Problem) -> Maker:
    """torch.mm with the weight in BF16."""
    weights = [problem.values.clone() for _ in range(copies(problem.values.nbytes))]
    return lambda x, out: [partial(torch.mm, x, weight.T, out=out) for weight in weights]


def makers(problem: Problem, rows: Sequence[int], selection: Selection) -> dict[str, Maker]:
    """All contenders that there are."""
    count = copies(packed_bytes(*problem.values.shape))
    found: dict[str, Maker] = {} if selection.peers_only else {OURS: ours(problem, count)}
    found[READ] = plain_read(problem)
    if selection.ours_only:
        return found
    found[CUBLAS] = cublas(problem)
    try:
        found[HUMMING] = Humming(problem.codes, problem.scales, problem.global_scale, count, rows).actions
    except UnavailableError as error:
        note(selection, f"{HUMMING} is left out: {error}")
    return found


def note(selection: Selection, text: str) -> None:
    if text not in selection.notes:
        selection.notes.append(text)


def case_of(shape: str, m: int, problem: Problem, by: dict[str, Maker], selection: Selection) -> Case:
    """One number of rows of a problem."""
    n, k = problem.values.shape
    x, wanted = problem.x[:m], problem.wanted[:m]
    out = torch.empty(m, n, dtype=torch.bfloat16, device=x.device)
    contenders: dict[str, Sequence[Action]] = {}
    for name, make in by.items():
        try:
            contenders[name] = make(x, out)
        except UnavailableError as error:
            note(selection, f"{shape} M={m}: {name} is left out: {error}")

    def checked(name: str, tolerance: float) -> Callable[[], str]:
        return partial(verdict, contenders[name][0], out, wanted, tolerance)

    return Case(
        name=f"{shape} M={m}",
        ours=OURS,
        contenders=contenders,
        check=checked(OURS, TOLERANCE) if OURS in contenders else str,
        peer_checks={p: checked(p, PEER_TOLERANCE) for p in (CUBLAS, HUMMING) if p in contenders},
        moved_bytes=packed_bytes(n, k) + x.nbytes + out.nbytes,
        flops=2 * m * n * k,
        rate="mma_sync",
        floors=(READ,) if READ in contenders else (),
        launches=LAUNCHES,
    )


def cases(selection: Selection) -> Iterator[Case]:
    return cases_on(torch.device("cuda", torch.cuda.current_device()), selection)


def cases_on(device: torch.device, selection: Selection) -> Iterator[Case]:
    """Cases with their tensors on a device."""
    for shape in selection.shapes or SHAPES:
        rows = [m for m in selection.m or ROWS if selection.only in f"{shape} M={m}"]
        if not rows:
            continue
        problem = draw(*extents(shape), max(rows), device)
        by = makers(problem, rows, selection)
        for m in rows:
            yield case_of(shape, m, problem, by, selection)
        del problem, by


def ceilings(rounds: int) -> dict[str, float]:
    """Of mma.sync and of an empty launch."""
    return reached.measured(rounds)


def kernels() -> list[dict[str, Any]]:
    """What ran, as the manifest names it."""
    return reached.recorded(["gemm_w4a16", "ceiling_read", "ceiling_mma_sync", "ceiling_empty"])
