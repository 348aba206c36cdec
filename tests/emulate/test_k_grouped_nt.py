"""Products grouped along K of K-major matrices on SM100, whose tensor maps the kernel makes: against float64."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import cute_kernels
from cute_kernels.emulator import EmulationError
from cute_kernels.runtime import Library, context
from tests.emulate import k_groups
from tests.emulate.broken import rewritten
from tests.emulate.direct import SCHEDULES, by_turns, with_seeds
from tests.emulate.k_groups import (
    GRANULARITY,
    LENGTHS,
    MULTIPLE,
    Parts,
    check_captured,
    check_groups,
    exact,
    judge,
    poisoned,
    run,
)

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

CUBINS = "*_k_grouped_accumulate"
OPERATION = cute_kernels.k_grouped_gemm_nt_contiguous


def operand(kind: str, ks: Sequence[int], mn: int, seed: int, more: int = 0) -> tuple[Parts, torch.Tensor]:
    """The A_g [MN, ks[g]] one behind another, NaN around them, with room for `more` K; and the values [K, MN]."""
    (lines, *scales), values = k_groups.operand(kind, ks, mn, seed, more)
    groups = lines[: sum(ks)].split(list(ks))
    flat = [_bytes(group.t().contiguous()) for group in groups]
    nan = _bytes(torch.full((max(AROUND, more * mn),), torch.nan).to(lines.dtype))
    memory = torch.cat([nan[: AROUND * lines.itemsize], *flat, nan]).view(lines.dtype)
    return [memory[AROUND:][: (sum(ks) + more) * mn], *scales], values


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten().view(torch.uint8)


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize(("kind", "lengths", "schedule"), CASES)
@with_seeds
def test_groups(kind: str, lengths: tuple[int, ...], schedule: str, seed: int) -> None:
    """Four tiles of a group or one."""
    size = (24, 20) if len(lengths) > 3 else (137, 260 if kind == "bf16" else 196)
    check_groups(OPERATION, operand, kind, lengths, schedule, size, seed)


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize(("kind", "schedule"), by_turns(*GRANULARITY))
def test_captured_lengths_may_change(kind: str, schedule: str) -> None:
    launches = (7, 0, 2), (0, 4, 1), (0, 0, 0), (1, 1, 10)
    check_captured(OPERATION, operand, kind, schedule, launches)


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
        run(OPERATION, kind, a, b, d, ks, torch.tensor(ks, dtype=torch.int32), d)
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
            run(OPERATION, "bf16", a, b, d, None, torch.tensor(wrong, dtype=torch.int32))


def test_nothing_to_sum_up() -> None:
    a, b = ([torch.zeros(0, dtype=torch.bfloat16)] for _ in "ab")
    lengths, d = torch.zeros(2, dtype=torch.int32), torch.full((2, 8, 16), torch.nan)
    with cute_kernels.emulate("sm_100a") as emulation:
        run(OPERATION, "bf16", a, b, d, [0, 0], lengths)
        assert bool((d == 0).all())
        run(OPERATION, "bf16", a, b, d, [0, 0], lengths, torch.ones_like(d))
        assert bool((d == 1).all())
        run(OPERATION, "bf16", a, b, d[:0], [], lengths[:0])
        some = [torch.zeros(32 * 8, dtype=torch.bfloat16)]
        on_device = torch.tensor([32, 0], dtype=torch.int32)
        for ks in ([32, 0], None):
            run(OPERATION, "bf16", some, b, d[..., :0], ks, on_device)
            run(OPERATION, "bf16", b, some, d[:, :0, :8], ks, on_device)
            run(OPERATION, "bf16", a, b, d[:, :0, :0], ks, on_device)
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
            run(OPERATION, "bf16", a, b, d, ks, torch.tensor(ks, dtype=torch.int32), torch.zeros(d.shape))
    except EmulationError as fault:
        found = fault.kind
    assert found == kind
    if not found:
        with pytest.raises(AssertionError):
            judge(d, exact(left, right, ks))


def _once(pattern: str, new: str, text: str) -> str:
    return re.sub(pattern, new, text, count=1)
