"""MXFP4 GEMMs: operands that leave no mistake unseen, and what D must hold, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cute_kernels.formats import dequantize
from cute_kernels.scale_factors import pack

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
FROBENIUS = 1e-5  # relative error of a D in FP32
SLACK = 2.0**-20  # of the sum of the products' magnitudes: accumulation in FP32
GUARD = 16  # rows and columns around D that nothing may write
POISON = 0xA5  # byte


@dataclass(frozen=True)
class Case:
    """A call: D [m, n] of "bf16" or "f32"; c: "none", "apart" (with a row stride of its own) or "d" (D
    itself).
    """

    m: int
    n: int
    k: int
    d: str = "f32"
    c: str = "none"
    schedule: str = "random"
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}-{self.d}-c_{self.c}-{self.schedule}{self.seed}"


class Operands:
    """The tensors of a case, in surroundings that show whether anything else is read or written.

    Scale factors of a K block are spread around 2^e for A and 2^-e for B, with e from one end of UE8M0 to the
    other: so bytes span their full range, no product overflows, and no block is too small to be seen. What
    lies between the rows of A and B is 6s and -6s; the words that pad the scales' columns are NaN.
    """

    def __init__(self, case: Case, device: str = "cpu", spread: int = 3) -> None:
        random = torch.Generator().manual_seed(1000 * case.seed + case.m + 3 * case.n + 7 * case.k)
        blocks = -(-case.k // 32)
        centre = torch.randint(spread, 255 - spread, (blocks,), generator=random)
        self.a, a = self._operand(case.m, case.k, centre, spread, random, device)
        self.b, b = self._operand(case.n, case.k, 254 - centre, spread, random, device)
        self.exact = a @ b.T
        self.magnitude = a.abs() @ b.abs().T
        dtype = DTYPES[case.d]
        self._memory = _poisoned(case.m + 2 * GUARD, case.n + 2 * GUARD, dtype, device)
        self.d = self._memory[GUARD : GUARD + case.m, GUARD : GUARD + case.n]
        self.c = None
        if case.c != "none":
            deviation = self.exact.square().mean().sqrt().item() or 1.0
            values = torch.randn(case.m, case.n, generator=random, dtype=torch.float64) * deviation
            if case.c == "d":
                self.c = self.d
            else:
                self.c = _poisoned(case.m, case.n + 3 * GUARD, dtype, device)[:, : case.n]
            self.c.copy_(values)
            added = self.c.double().cpu()
            self.exact, self.magnitude = self.exact + added, self.magnitude + added.abs()

    @staticmethod
    def _operand(
        rows: int, k: int, centre: torch.Tensor, spread: int, random: torch.Generator, device: str
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        codes = torch.randint(0, 256, (rows, k // 2), dtype=torch.uint8, generator=random)
        offsets = torch.randint(-spread, spread + 1, (rows, len(centre)), generator=random)
        scales = (centre + offsets).to(torch.uint8)
        values = dequantize(codes, scales, group=(1, 32), dtype=torch.float64)
        wide = torch.full((rows, k // 2 + 32), 0xF7, dtype=torch.uint8)
        wide[:, : k // 2] = codes
        words = pack(scales).t()
        memory = torch.full((len(words), -(-rows // 4) * 4), -1, dtype=torch.int32)
        memory[:, :rows] = words
        return (wide.to(device)[:, : k // 2], memory.to(device)[:, :rows].t()), values

    def wrong(self) -> str:
        """Say what is wrong with D and what surrounds it; "" if nothing is."""
        d = self.d.double().cpu()
        if not bool(d.isfinite().all()):
            return f"{int((~d.isfinite()).sum())} elements are not finite"
        # Rounding is monotonic: D lies between the roundings of the ends of where the FP32 sum may lie.
        low, high = (
            (self.exact + sign * SLACK * self.magnitude).to(self.d.dtype).double() for sign in (-1, 1)
        )
        outside = ((d < low) | (d > high)).nonzero()
        if len(outside):
            i, j = outside[0].tolist()
            return f"{len(outside)} elements are wrong; ({i}, {j}) is {d[i, j]} instead of {self.exact[i, j]}"
        error = float((d - self.exact).norm() / self.exact.norm())
        if self.d.dtype is torch.float32 and error > FROBENIUS:
            return f"the relative error is {error}"
        memory = self._memory.cpu().view(torch.uint8).clone()
        inside = memory.view(self.d.dtype)[GUARD:-GUARD, GUARD : GUARD + self.d.shape[1]]
        inside.view(torch.uint8).fill_(POISON)
        return "" if bool((memory == POISON).all()) else "something outside D was written"


def _poisoned(rows: int, columns: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """A matrix with a row stride of whole 16 bytes, all of its bytes POISON."""
    step = 16 // dtype.itemsize
    stride = -(-columns // step) * step
    memory = torch.full((rows, stride * dtype.itemsize), POISON, dtype=torch.uint8, device=device)
    return memory.view(dtype)[:, :columns]


# Every two values of different properties meet in one of these.
PAIRWISE = tuple(
    Case(*values)
    for values in (
        (1, 16, 4096, "bf16", "d", "random", 1),
        (1, 96, 256, "bf16", "apart", "random", 2),
        (1, 128, 32, "f32", "d", "eager", 2),
        (1, 128, 288, "f32", "d", "lazy", 0),
        (1, 200, 64, "bf16", "none", "eager", 1),
        (1, 512, 1024, "bf16", "none", "random", 1),
        (1, 1000, 4096, "f32", "none", "eager", 1),
        (7, 16, 288, "bf16", "apart", "random", 1),
        (7, 96, 1024, "f32", "apart", "eager", 0),
        (7, 128, 256, "f32", "none", "random", 2),
        (7, 200, 4096, "bf16", "none", "random", 1),
        (7, 512, 64, "f32", "d", "lazy", 0),
        (7, 1000, 32, "f32", "none", "random", 2),
        (64, 16, 64, "bf16", "apart", "eager", 0),
        (64, 96, 4096, "f32", "apart", "lazy", 0),
        (64, 128, 288, "f32", "none", "random", 2),
        (64, 200, 256, "f32", "none", "lazy", 2),
        (64, 512, 32, "bf16", "d", "eager", 1),
        (64, 1000, 64, "f32", "none", "eager", 1),
        (64, 1000, 1024, "f32", "apart", "eager", 0),
        (127, 16, 32, "f32", "apart", "lazy", 2),
        (127, 96, 4096, "f32", "apart", "eager", 2),
        (127, 128, 64, "bf16", "d", "eager", 1),
        (127, 200, 1024, "bf16", "apart", "random", 2),
        (127, 512, 288, "bf16", "none", "eager", 1),
        (127, 1000, 256, "bf16", "d", "random", 0),
        (128, 16, 1024, "f32", "d", "eager", 2),
        (128, 96, 64, "bf16", "none", "lazy", 1),
        (128, 128, 256, "f32", "apart", "lazy", 1),
        (128, 200, 288, "f32", "apart", "eager", 0),
        (128, 512, 4096, "bf16", "d", "random", 1),
        (128, 1000, 32, "f32", "apart", "random", 0),
        (129, 16, 4096, "f32", "none", "eager", 0),
        (129, 96, 32, "bf16", "none", "eager", 0),
        (129, 128, 1024, "bf16", "apart", "lazy", 1),
        (129, 200, 64, "f32", "d", "random", 2),
        (129, 512, 256, "bf16", "none", "lazy", 2),
        (129, 1000, 288, "f32", "apart", "eager", 1),
        (300, 16, 256, "f32", "none", "eager", 1),
        (300, 16, 1024, "bf16", "d", "eager", 2),
        (300, 96, 32, "bf16", "d", "random", 1),
        (300, 128, 4096, "f32", "none", "eager", 0),
        (300, 200, 32, "bf16", "apart", "eager", 2),
        (300, 512, 288, "f32", "none", "eager", 1),
        (300, 1000, 64, "bf16", "none", "lazy", 0),
        (512, 16, 256, "bf16", "d", "lazy", 0),
        (512, 16, 1024, "f32", "none", "random", 2),
        (512, 96, 288, "bf16", "d", "eager", 1),
        (512, 128, 4096, "f32", "d", "eager", 1),
        (512, 200, 256, "bf16", "none", "lazy", 0),
        (512, 512, 32, "f32", "apart", "random", 0),
        (512, 1000, 64, "bf16", "apart", "eager", 1),
    )
)
VALUES: dict[str, Sequence[Any]] = {
    "m": (1, 7, 64, 127, 128, 129, 300, 512),
    "n": (16, 96, 128, 200, 512, 1000),
    "k": (32, 64, 256, 288, 1024, 4096),
    "d": ("bf16", "f32"),
    "c": ("none", "apart", "d"),
    "schedule": ("eager", "lazy", "random"),
    "seed": (0, 1, 2),
}
