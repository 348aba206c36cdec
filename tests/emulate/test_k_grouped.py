"""Products grouped along K on SM100: against float64, with groups of no K tile, a part of one, and many."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cute_kernels
from cute_kernels.emulator import EmulationError
from cute_kernels.runtime import Library, context
from tests.emulate.broken import rewritten
from tests.emulate.direct import SCHEDULES, by_turns, with_seeds
from tests.emulate.k_groups import (
    GRANULARITY,
    LENGTHS,
    MULTIPLE,
    check_captured,
    check_groups,
    exact,
    judge,
    operand,
    poisoned,
    run,
)

CUBINS = "*_k_grouped_tn_*"
OPERATION = cute_kernels.k_grouped_gemm_tn_contiguous


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize("kind", GRANULARITY)
@pytest.mark.parametrize(("lengths", "schedule"), by_turns(*LENGTHS))
@with_seeds
def test_groups(kind: str, lengths: tuple[int, ...], schedule: str, seed: int) -> None:
    """Four tiles of a group or one."""
    m, n = (24, 20) if len(lengths) > 3 else (136, 260 if kind == "bf16" else 140)
    m, n = (192, 320) if len(lengths) == 2 else (m, n)  # whole blocks of BF16
    check_groups(OPERATION, operand, kind, lengths, schedule, (m, n), seed)


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize(("kind", "schedule"), by_turns(*GRANULARITY))
def test_captured_lengths_may_change(kind: str, schedule: str) -> None:
    check_captured(OPERATION, operand, kind, schedule, ((7, 0, 2), (0, 4, 1), (1, 1, 10)))


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
    """A sum of -0 and 0 is 0: D of a group without rows is C, and not even that sum."""
    ks = [0, 16, 0, 0]
    (a, _), (b, _) = operand("bf16", ks, 16, 1), operand("bf16", ks, 8, 2)
    c = torch.full((4, 16, 8), -0.0)
    d = c if in_place else torch.full_like(c, torch.nan)
    with cute_kernels.emulate("sm_100a", "random", 1, 3):
        run(OPERATION, "bf16", a, b, d, ks, torch.tensor(ks, dtype=torch.int32), c)
    assert bool((d[[0, 2, 3]] == 0).all())
    assert bool(d[[0, 2, 3]].signbit().all())
    assert not bool((d[1] == 0).all())


@pytest.mark.usefixtures("cubins")
def test_nothing_to_sum_up() -> None:
    a, b = ([torch.zeros(0, mn, dtype=torch.bfloat16)] for mn in (8, 16))
    lengths, d = torch.zeros(2, dtype=torch.int32), torch.full((2, 8, 16), torch.nan)
    with cute_kernels.emulate("sm_100a") as emulation:
        run(OPERATION, "bf16", a, b, d, [0, 0], lengths)
        assert bool((d == 0).all())
        run(OPERATION, "bf16", a, b, d, [0, 0], lengths, torch.ones_like(d))
        assert bool((d == 1).all())
        run(OPERATION, "bf16", a, b, d[:0], [], lengths[:0])
        run(OPERATION, "bf16", [a[0][:, :0]], b, d[:, :0], [0, 0], lengths)
    assert not emulation.reports


# MMAs left over behind whole K tiles, for each number of which there is a loop.
_REST = r"and\.b32 \t(%r\d+), %r\d+, 3;(?=(?s:.*)setp\.eq\.b32 \t%p\d+, \1, 2;)"
_EMPTY = r"setp\.gt\.s32 (\t%p\d+), %r\d+, 0;(?=[^;]*and\.pred)"
_ADD = r"cp\.reduce\.(async\.bulk\.tensor\.3d\.global\.shared::cta)\.add\."
_SUM = r"redux\.sync\.add\.s32 (\t%r\d+),[^;]*;"
BUGS: dict[str, tuple[str, Callable[[str], str]]] = {
    "rows of the next group too": ("bf16", lambda t: re.sub(_REST, r"\g<0> or.b32 \1, \1, 1;", t)),
    "rows of another group": ("bf16", lambda t: re.sub(_SUM, r"mov.b32 \1, 0;", t)),
    "operands of another group": ("mxf8", lambda t: _nth(_SUM, r"mov.b32 \1, 0;", t, 0)),
    "scale factors of another group": ("mxf8_k128", lambda t: _nth(_SUM, r"mov.b32 \1, 0;", t, 1)),
    "an empty group is not passed over": ("bf16", lambda t: re.sub(_EMPTY, r"mov.pred \1, -1;", t)),
    "D is not what is added to": ("bf16", lambda t: re.sub(_ADD, r"cp.\1.", t)),
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
            run(OPERATION, kind, a, b, d, ks, torch.tensor(ks, dtype=torch.int32), torch.ones(d.shape))
    except EmulationError:
        return
    with pytest.raises(AssertionError):
        judge(d, exact(left, right, ks) + 1)
