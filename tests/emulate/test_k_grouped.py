"""Products grouped along K on SM100: against float64, with groups of no K tile, a part of one, and many."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels.emulator import EmulationError
from cute_kernels.formats import dequantize
from cute_kernels.runtime import Library, context
from cute_kernels.scale_factors import pack_k_grouped
from tests.building import Request, build
from tests.emulate.broken import rewritten
from tests.emulate.direct import SCHEDULES, by_turns

GRANULARITY = {"bf16": 0, "mxf8": 32, "mxf8_k128": 128}
MULTIPLE = {"bf16": 16, "mxf8": 32, "mxf8_k128": 128}
# In multiples of what a format takes: K tiles are 4, 4 and 1 of them.
LENGTHS = ((0, 3, 9), (8, 1, 4, 0, 0, 2), (0, 21), (1, 3, 0, *[0] * 30, 2))

Parts = list[torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("cubins")
    request = Request(out, ("sm_100a",), only="*_k_grouped_tn_*", packages=("sm100",))
    assert not build(request, say=lambda line: None).failures
    return out


@pytest.fixture
def cubins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library(folder)
    monkeypatch.setattr(context._settings, "library", library)
    return library


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
    kind: str,
    a: Parts,
    b: Parts,
    d: torch.Tensor,
    ks: Sequence[int] | None,
    lengths: torch.Tensor,
    c: Any = None,
) -> None:
    recipe = (1, 1, GRANULARITY[kind]) if GRANULARITY[kind] else None
    left, right = (parts[0] if len(parts) == 1 else tuple(parts) for parts in (a, b))
    assert cute_kernels.k_grouped_gemm_tn_contiguous(left, right, d, ks, lengths, c, recipe=recipe) is d


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


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize("kind", GRANULARITY)
@pytest.mark.parametrize(("lengths", "schedule"), by_turns(*LENGTHS))
def test_groups(kind: str, lengths: tuple[int, ...], schedule: str) -> None:
    """Four tiles of a group or one; without C, with C apart from D, and with D as C, by turns."""
    m, n = (24, 20) if len(lengths) > 3 else (136, 260 if kind == "bf16" else 140)
    m, n = (192, 320) if len(lengths) == 2 else (m, n)  # whole blocks of BF16
    ks = [length * MULTIPLE[kind] for length in lengths]
    (a, left), (b, right) = operand(kind, ks, m, 1), operand(kind, ks, n, 2)
    wanted = exact(left, right, ks)
    d = poisoned(wanted.shape)
    turn = (LENGTHS.index(lengths) + list(GRANULARITY).index(kind)) % 3
    given = (None, poisoned(wanted.shape), d)[turn]
    if given is not None:
        given.copy_(torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3)) * wanted.std())
        wanted = wanted + given.double()
    with cute_kernels.emulate("sm_100a", schedule, turn, 3) as emulation:
        run(kind, a, b, d, ks, torch.tensor(ks, dtype=torch.int32), given)
    assert [report.warnings for report in emulation.reports] == [[]]
    judge(d, wanted)


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize(("kind", "schedule"), by_turns(*GRANULARITY))
def test_captured_lengths_may_change(kind: str, schedule: str) -> None:
    """One request serves whatever lengths and values its memory holds; what lies behind the last group is NaN."""
    m, n, rows = 48, 32, 13 * MULTIPLE[kind]
    a, b = ([part.clone() for part in operand(kind, [], mn, 0, rows)[0]] for mn in (m, n))
    d, on_device = poisoned((3, m, n)), torch.zeros(3, dtype=torch.int32)
    with cute_kernels.emulate("sm_100a", schedule, 1, 2) as emulation:
        for seed, lengths in enumerate(((7, 0, 2), (0, 4, 1), (1, 1, 10))):
            ks = [length * MULTIPLE[kind] for length in lengths]
            values = []
            for mn, memory in ((m, a), (n, b)):
                parts, exactly = operand(kind, ks, mn, seed + mn, rows - sum(ks))
                values.append(exactly)
                for part, place in zip(parts, memory, strict=True):
                    place[: len(part)].copy_(part[: len(place)])
            on_device.copy_(torch.tensor(ks, dtype=torch.int32))
            d.fill_(torch.nan)
            run(kind, a, b, d, None, on_device)
            judge(d, exact(*values, ks))
    assert [report.warnings for report in emulation.reports] == [[]] * 3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pairs(cubins: Library, schedule: str) -> None:
    """A CTA pair, which the choice above leaves out for want of tiles."""
    cubins.records = tuple(r for r in cubins.records if r.config["cta_group"] == 2)
    ks = [80, 16 * SCHEDULES.index(schedule), 336]
    m, n = (320, 192) if schedule == "random" else (264, 200)  # whole blocks or not
    (a, left), (b, right) = operand("bf16", ks, m, 1), operand("bf16", ks, n, 2)
    d = poisoned((3, m, n))
    d.copy_(torch.randn(d.shape))
    wanted = exact(left, right, ks) + d.double()
    with cute_kernels.emulate("sm_100a", schedule, 5, 2) as emulation:
        cute_kernels.k_grouped_bf16_gemm_tn_contiguous(
            a[0], b[0], d, ks, torch.tensor(ks, dtype=torch.int32), d
        )
    assert emulation.reports[0].warnings == []
    judge(d, wanted)


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize("in_place", [True, False])
def test_groups_without_rows_are_passed_over(in_place: bool) -> None:
    """A sum of -0 and 0 is 0: where D is C, D of a group without rows is not even that."""
    ks = [0, 16, 0, 0]
    (a, _), (b, _) = operand("bf16", ks, 16, 1), operand("bf16", ks, 8, 2)
    c = torch.full((4, 16, 8), -0.0)
    d = c if in_place else torch.full_like(c, torch.nan)
    with cute_kernels.emulate("sm_100a", "random", 1, 3):
        run("bf16", a, b, d, ks, torch.tensor(ks, dtype=torch.int32), c)
    assert bool((d[[0, 2, 3]] == 0).all())
    assert bool((d[[0, 2, 3]].signbit() == in_place).all())
    assert not bool((d[1] == 0).all())


@pytest.mark.usefixtures("cubins")
def test_nothing_to_sum_up() -> None:
    a, b = ([torch.zeros(0, mn, dtype=torch.bfloat16)] for mn in (8, 16))
    lengths, d = torch.zeros(2, dtype=torch.int32), torch.full((2, 8, 16), torch.nan)
    with cute_kernels.emulate("sm_100a") as emulation:
        run("bf16", a, b, d, [0, 0], lengths)
        assert bool((d == 0).all())
        run("bf16", a, b, d, [0, 0], lengths, torch.ones_like(d))
        assert bool((d == 1).all())
        run("bf16", a, b, d[:0], [], lengths[:0])
        run("bf16", [a[0][:, :0]], b, d[:, :0], [0, 0], lengths)
    assert not emulation.reports


_TAIL = (
    r"setp\.[lgn]\w\.\w32 (\t%p\d+), %r\d+, [23];(?=[^;]*@%p\d+ bra[^;]*;(?:[^;]*;){1,8}[^;]*tcgen05\.mma)"
)
_SUM = r"redux\.sync\.add\.s32 (\t%r\d+),[^;]*;"
BUGS: dict[str, tuple[str, Callable[[str], str]]] = {
    "rows of the next group too": ("bf16", lambda t: re.sub(_TAIL, r"mov.pred \1, 0;", t)),
    "rows of another group": ("bf16", lambda t: re.sub(_SUM, r"mov.b32 \1, 0;", t)),
    "operands of another group": ("mxf8", lambda t: _nth(_SUM, r"mov.b32 \1, 0;", t, 0)),
    "scale factors of another group": ("mxf8_k128", lambda t: _nth(_SUM, r"mov.b32 \1, 0;", t, 1)),
    "an empty group has rows": ("bf16", lambda t: t.replace(", -64, ", ", 0, ")),
}


def _nth(pattern: str, new: str, text: str, nth: int) -> str:
    match = list(re.finditer(pattern, text))[nth]
    return text[: match.start()] + match.expand(new) + text[match.end() :]


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    kind, change = BUGS[bug]
    (name,) = (r.name for r in Library(folder).records if f"_{kind}_128x" in r.name)
    broken = Library(rewritten(folder, tmp_path / "broken", name, change))
    broken.records = tuple(r for r in broken.records if r.name == name)
    monkeypatch.setattr(context._settings, "library", broken)
    ks = [length * MULTIPLE[kind] for length in (0, 6, 3)]
    (a, left), (b, right) = operand(kind, ks, 24, 1), operand(kind, ks, 20, 2)
    d = poisoned((3, 24, 20))
    try:
        with cute_kernels.emulate("sm_100a", num_sms=2):
            run(kind, a, b, d, ks, torch.tensor(ks, dtype=torch.int32), torch.zeros(d.shape))
    except EmulationError:
        return
    with pytest.raises(AssertionError):
        judge(d, exact(left, right, ks))
