"""Products grouped along K, for tests: operands, D in poisoned memory, and what holds however A and B lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import cute_kernels
from cute_kernels.formats import dequantize
from cute_kernels.scale_factors import pack_k_grouped

GRANULARITY = {"bf16": 0, "mxf8": 32, "mxf8_k128": 128}
MULTIPLE = {"bf16": 16, "mxf8": 32, "mxf8_k128": 128}
# In multiples of what a format takes: K tiles are 4, 4 and 1 of them.
LENGTHS = ((0, 3, 9), (8, 1, 4, 0, 0, 2), (0, 21), (1, 3, 0, *[0] * 30, 2))

Parts = list[torch.Tensor]
Operation = Callable[..., torch.Tensor]
MakeOperand = Callable[..., tuple[Parts, torch.Tensor]]


def operand(kind: str, ks: Sequence[int], mn: int, seed: int, more: int = 0) -> tuple[Parts, torch.Tensor]:
    """A [K, MN] in rows that NaN lies between, `more` rows of NaN behind the last group; and its values, float64.

    Its parts: elements, and where there are any, scale factors, NaN in the words behind those of the last group.
    """
    random = torch.Generator().manual_seed(seed)
    k, granularity = sum(ks), GRANULARITY[kind]
    dtype = torch.float8_e4m3fn if granularity else torch.bfloat16
    step = 16 // dtype.itemsize
    wide = torch.full((k + more, (-(-mn // step) + 1) * step), torch.nan).to(dtype)
    elements = wide[:, :mn]
    if not granularity:
        elements[:k] = torch.randn(k, mn, generator=random).to(dtype)
        return [elements], elements[:k].double()
    codes = torch.randint(0, 256, (k, mn), generator=random, dtype=torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    elements[:k] = codes.view(dtype)
    scales = torch.randint(117, 138, (k // granularity, mn), generator=random, dtype=torch.uint8)
    values = dequantize(elements[:k], scales, group=(granularity, 1), dtype=torch.float64)
    words = pack_k_grouped(scales, list(ks), granularity)
    behind = torch.full((more // granularity, words.stride(0)), -1, dtype=torch.int32)
    memory = torch.cat([words.as_strided((len(words), words.stride(0)), words.stride()), behind])
    return [elements, memory[:, :mn]], values


def exact(a: torch.Tensor, b: torch.Tensor, ks: Sequence[int]) -> torch.Tensor:
    """D without C, float64 [G, M, N]."""
    return torch.stack([x.t() @ y for x, y in zip(a.split(list(ks)), b.split(list(ks)), strict=True)])


def run(
    operation: Operation,
    kind: str,
    a: Parts,
    b: Parts,
    d: torch.Tensor,
    ks: Sequence[int] | None,
    lengths: torch.Tensor,
    c: Any = None,
) -> None:
    """Call one of the two operations; parts as `operand` gives them."""
    recipe = (1, 1, GRANULARITY[kind]) if GRANULARITY[kind] else None
    left, right = (parts[0] if len(parts) == 1 else tuple(parts) for parts in (a, b))
    assert operation(left, right, d, ks, lengths, c, recipe=recipe) is d


def poisoned(shape: Sequence[int]) -> torch.Tensor:
    """NaN [G, M, N] inside more of it."""
    g, m, n = shape
    return torch.full((g + 2, m + 1, n + 4), torch.nan)[1:-1, 1:, :n]


def judge(d: torch.Tensor, wanted: torch.Tensor) -> None:
    assert bool(d.isfinite().all())
    for found, right in zip(d.double(), wanted, strict=True):  # a short group would hide among the others
        assert float((found - right).norm()) <= 1e-6 * float(right.norm())
    assert d._base is not None
    assert int((~d._base.isnan()).sum()) == d.numel()  # nothing beside D was written


def check_groups(
    operation: Operation,
    make: MakeOperand,
    kind: str,
    lengths: tuple[int, ...],
    schedule: str,
    size: tuple[int, int],
    seed: int = 0,
) -> None:
    """Without C, with C apart from D, and with D as C, by turns."""
    ks = [length * MULTIPLE[kind] for length in lengths]
    (a, left), (b, right) = (make(kind, ks, mn, of + 10 * seed) for of, mn in enumerate(size, 1))
    wanted = exact(left, right, ks)
    d = poisoned(wanted.shape)
    turn = (LENGTHS.index(lengths) + list(GRANULARITY).index(kind) + seed) % 3
    given = (None, poisoned(wanted.shape), d)[turn]
    if given is not None:
        given.copy_(torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3)) * wanted.std())
        wanted = wanted + given.double()
    with cute_kernels.emulate("sm_100a", schedule, turn, 3) as emulation:
        run(operation, kind, a, b, d, ks, torch.tensor(ks, dtype=torch.int32), given)
    assert [report.warnings for report in emulation.reports] == [[]]
    judge(d, wanted)


def check_captured(
    operation: Operation, make: MakeOperand, kind: str, schedule: str, launches: Sequence[tuple[int, ...]]
) -> None:
    """One request serves whatever lengths and values its memory holds; what lies behind the last group is NaN."""
    m, n, room = 48, 32, 13 * MULTIPLE[kind]
    a, b = ([part.clone() for part in make(kind, [], mn, 0, room)[0]] for mn in (m, n))
    d, on_device = poisoned((3, m, n)), torch.zeros(3, dtype=torch.int32)
    with cute_kernels.emulate("sm_100a", schedule, 1, 2) as emulation:
        for seed, lengths in enumerate(launches):
            ks = [length * MULTIPLE[kind] for length in lengths]
            values = []
            for mn, memory in ((m, a), (n, b)):
                parts, exactly = make(kind, ks, mn, seed + mn, room - sum(ks))
                values.append(exactly)
                for part, place in zip(parts, memory, strict=True):
                    place[: len(part)].copy_(part[: len(place)])
            on_device.copy_(torch.tensor(ks, dtype=torch.int32))
            d.fill_(torch.nan)
            run(operation, kind, a, b, d, None, on_device)
            judge(d, exact(values[0], values[1], ks))
    assert [report.warnings for report in emulation.reports] == [[]] * len(launches)
