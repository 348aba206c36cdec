"""Products grouped along K of K-major matrices on SM100, whose tensor maps the kernel makes: against float64."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels.emulator import EmulationError
from cute_kernels.runtime import Library, context
from tests.building import Request, build
from tests.emulate import test_k_grouped
from tests.emulate.broken import rewritten
from tests.emulate.direct import SCHEDULES, by_turns
from tests.emulate.test_k_grouped import GRANULARITY, LENGTHS, MULTIPLE, Parts, exact, judge, poisoned

# Half of them, with one schedule each, in every run of the tests; the others in the full matrix alone.
CASES = [
    pytest.param(
        kind,
        lengths,
        schedule,
        marks=() if (i + j) % 2 == 0 and (i + j // 2 + t) % 3 == 0 else pytest.mark.full,
    )
    for i, kind in enumerate(GRANULARITY)
    for j, lengths in enumerate(LENGTHS)
    for t, schedule in enumerate(SCHEDULES)
]
AROUND = 16  # elements of NaN before and behind the matrices: 16 bytes at least


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("cubins")
    request = Request(out, ("sm_100a",), only="*_k_grouped_accumulate", packages=("sm100",))
    assert not build(request, say=lambda line: None).failures
    return out


@pytest.fixture
def cubins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library(folder)
    monkeypatch.setattr(context._settings, "library", library)
    return library


def operand(kind: str, ks: Sequence[int], mn: int, seed: int, more: int = 0) -> tuple[Parts, torch.Tensor]:
    """The A_g [MN, ks[g]] one behind another, NaN around them, with room for `more` K; and the values [K, MN]."""
    (lines, *scales), values = test_k_grouped.operand(kind, ks, mn, seed, more)
    groups = lines[: sum(ks)].split(list(ks))
    flat = [_bytes(group.t().contiguous()) for group in groups]
    nan = _bytes(torch.full((max(AROUND, more * mn),), torch.nan).to(lines.dtype))
    memory = torch.cat([nan[: AROUND * lines.itemsize], *flat, nan]).view(lines.dtype)
    return [memory[AROUND:][: (sum(ks) + more) * mn], *scales], values


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten().view(torch.uint8)


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
    assert cute_kernels.k_grouped_gemm_nt_contiguous(left, right, d, ks, lengths, c, recipe=recipe) is d


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize(("kind", "lengths", "schedule"), CASES)
def test_groups(kind: str, lengths: tuple[int, ...], schedule: str) -> None:
    """Four tiles of a group or one; without C, with C apart from D, and with D as C, by turns."""
    m, n = (24, 20) if len(lengths) > 3 else (137, 260 if kind == "bf16" else 196)
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
    m, n, room = 48, 32, 13 * MULTIPLE[kind]
    a, b = ([part.clone() for part in operand(kind, [], mn, 0, room)[0]] for mn in (m, n))
    d, on_device = poisoned((3, m, n)), torch.zeros(3, dtype=torch.int32)
    with cute_kernels.emulate("sm_100a", schedule, 1, 2) as emulation:
        for seed, lengths in enumerate(((7, 0, 2), (0, 4, 1), (0, 0, 0), (1, 1, 10))):
            ks = [length * MULTIPLE[kind] for length in lengths]
            values = []
            for mn, memory in ((m, a), (n, b)):
                parts, exactly = operand(kind, ks, mn, seed + mn, room - sum(ks))
                values.append(exactly)
                for part, place in zip(parts, memory, strict=True):
                    place[: len(part)].copy_(part[: len(place)])
            on_device.copy_(torch.tensor(ks, dtype=torch.int32))
            d.fill_(torch.nan)
            run(kind, a, b, d, None, on_device)
            judge(d, exact(*values, ks))
    assert [report.warnings for report in emulation.reports] == [[]] * 4


@pytest.mark.parametrize(("kind", "schedule"), by_turns("bf16", "mxf8_k128"))
def test_pairs(cubins: Library, kind: str, schedule: str) -> None:
    """A CTA pair, which the choice above leaves out for want of tiles; each CTA makes maps of its own."""
    cubins.records = tuple(r for r in cubins.records if r.config["cta_group"] == 2)
    ks = [MULTIPLE[kind] * length for length in (2, SCHEDULES.index(schedule), 0, 5)]
    m, n = 264, 200
    (a, left), (b, right) = operand(kind, ks, m, 1), operand(kind, ks, n, 2)
    d = poisoned((4, m, n))
    d.copy_(torch.randn(d.shape))
    wanted = exact(left, right, ks) + d.double()
    with cute_kernels.emulate("sm_100a", schedule, 5, 2) as emulation:
        run(kind, a, b, d, ks, torch.tensor(ks, dtype=torch.int32), d)
    assert emulation.reports[0].warnings == []
    judge(d, wanted)


@pytest.mark.usefixtures("cubins")
def test_the_second_example_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "grouped.md").read_text()
    _, program = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(program, {})


@pytest.mark.usefixtures("cubins")
def test_lengths_that_do_not_fit_read_nothing_outside() -> None:
    """What the device says is not checked: wrong lengths give wrong sums, and A and B alone are read."""
    ks = [64, 128]
    (a, _), (b, _) = operand("bf16", ks, 16, 1), operand("bf16", ks, 8, 2)
    for wrong in ([64, 144], [-16, 64], [7, 121], [4096, 64]):
        d = poisoned((2, 16, 8))
        with cute_kernels.emulate("sm_100a", "random", 1, 2):
            run("bf16", a, b, d, None, torch.tensor(wrong, dtype=torch.int32))


def test_nothing_to_sum_up() -> None:
    a, b = ([torch.zeros(0, dtype=torch.bfloat16)] for _ in "ab")
    lengths, d = torch.zeros(2, dtype=torch.int32), torch.full((2, 8, 16), torch.nan)
    with cute_kernels.emulate("sm_100a") as emulation:
        run("bf16", a, b, d, [0, 0], lengths)
        assert bool((d == 0).all())
        run("bf16", a, b, d, [0, 0], lengths, torch.ones_like(d))
        assert bool((d == 1).all())
        run("bf16", a, b, d[:0], [], lengths[:0])
        some = [torch.zeros(32 * 8, dtype=torch.bfloat16)]
        on_device = torch.tensor([32, 0], dtype=torch.int32)
        for ks in ([32, 0], None):
            run("bf16", some, b, d[..., :0], ks, on_device)
            run("bf16", b, some, d[:, :0, :8], ks, on_device)
            run("bf16", a, b, d[:, :0, :0], ks, on_device)
    assert not emulation.reports


_ACQUIRE = r"fence\.proxy\.tensormap::generic\.acquire\.gpu [^;]*;"
_FIELD = r"tensormap\.replace\.tile\.{}\.[^;]*;"
_TURN = r"setp\.eq\.b32 \t(%p\d+), (%r\d+), \d+;[^;]*selp\.b32 \t(%r\d+), 0, \2, \1;(?=(?:[^;]*;){1,15}[^;]*tensormap)"
# A piece of a kernel's PTX, what takes its place once, and what the emulator calls it; "" where D is wrong.
BUGS = {
    "maps are not acquired": (_ACQUIRE, "", "missing-proxy-fence"),
    "slots do not take turns": (_TURN, r"mov.b32 \3, 0;", "missing-wait"),
    "another address": (_FIELD.format("global_address"), "", ""),
    "another extent": (_FIELD.format("global_dim"), "", "out-of-range"),
    "another stride": (_FIELD.format("global_stride"), "", "out-of-range"),
    "K of another group": (r"redux\.sync\.add\.s32 (\t%r\d+),[^;]*;", r"mov.b32 \1, 0;", ""),
    "an empty group has K": (r"(?s)-1073741824(.*)-1073741824", r"0\g<1>0", ""),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    old, new, kind = BUGS[bug]
    (name,) = (r.name for r in Library(folder).records if "_bf16_128x" in r.name)
    broken = Library(rewritten(folder, tmp_path / "broken", name, lambda text: _once(old, new, text)))
    broken.records = tuple(r for r in broken.records if r.name == name)
    monkeypatch.setattr(context._settings, "library", broken)
    ks = [48, 0, 16, 80]
    (a, left), (b, right) = operand("bf16", ks, 24, 1), operand("bf16", ks, 20, 2)
    d = poisoned((4, 24, 20))
    found = ""
    try:
        with cute_kernels.emulate("sm_100a", num_sms=1):
            run("bf16", a, b, d, ks, torch.tensor(ks, dtype=torch.int32), torch.zeros(d.shape))
    except EmulationError as fault:
        found = fault.kind
    assert found == kind
    if not found:
        with pytest.raises(AssertionError):
            judge(d, exact(left, right, ks))


def _once(pattern: str, new: str, text: str) -> str:
    return re.sub(pattern, new, text, count=1)
