"""What the report of a fault holds: source text, the barriers, the last events at the address, likely causes."""

from __future__ import annotations

import pathlib

import pytest

from cute_kernels.emulator import EmulationError
from tests.instructions.kernels import run

SOURCE = "first line\nvalue = ring[slot]  # the line that is at fault\n"

BARRIER = """
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra READY;
    mbarrier.init.shared.b64 [%r1], {count};
READY:
    bar.sync 0;
    setp.ge.u32 %p1, %r0, {arrivals};
    @%p1 bra WAIT;
    {arrive}
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p2, [%r1], {parity};
    @!%p2 bra WAIT;
"""
ARRIVE = "mbarrier.arrive.shared.b64 %d10, [%r1];"


def report(body: str, threads: int = 32) -> str:
    with pytest.raises(EmulationError) as caught:
        run(body, threads=threads)
    assert str(caught.value) == caught.value.args[0]
    return str(caught.value)


def test_a_race_shows_source_text_and_both_accesses(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernel_at_fault.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    body = """
    .file 1 "kernel_at_fault.py"
    shl.b32 %r5, %r0, 2;
    and.b32 %r5, %r5, 127;
    add.u32 %r5, %r1, %r5;
    setp.lt.u32 %p0, %r0, 32;
    .loc 1 1 1
    @%p0 st.shared.b32 [%r5], %r0;
    .loc 1 2 1
    @!%p0 ld.shared.b32 %r6, [%r5];
    """
    text = report(body, threads=64)
    assert "[race]" in text or "[uninitialised]" in text
    assert "kernel_at_fault.py:2" in text
    assert "> value = ring[slot]  # the line that is at fault" in text
    assert (
        "last events there:\n    write by warp 0 of CTA (0, 0, 0) at kernel_at_fault.py:1: @%p0 st.shared"
        in text
    )


def test_the_callers_of_inlined_code_are_shown(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "calling_kernel.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    body = """
    .file 1 "helper.py"
    .file 2 "calling_kernel.py"
    .loc 2 2 1
    mov.b32 %r5, 0;
    .loc 1 40 1, function_name $name, inlined_at 2 2 1
    ld.shared.b32 %r6, [%r1];
    """
    text = report(body)
    assert "helper.py:40" in text
    assert "called at calling_kernel.py:2\n    > value = ring[slot]" in text


def test_a_source_file_that_is_not_there_is_no_fault() -> None:
    body = '.file 1 "no_such_file.py"\n.loc 1 7 1\n    ld.shared.b32 %r6, [%r1];\n'
    text = report(body)
    assert "no_such_file.py:7" in text
    assert "    >" not in text


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"count": 2}, "1 of 2 arrivals came in phase 0"),
        ({"arrivals": 0}, "nobody has arrived in phase 0"),
        ({"parity": 1, "arrivals": 0, "count": 4, "before": True}, "nobody has arrived in phase 1"),
        ({"arrive": "mbarrier.arrive.expect_tx.shared.b64 %d10, [%r1], 48;"}, "48 bytes more are expected"),
    ],
)
def test_a_deadlock_says_why(change: dict[str, object], cause: str) -> None:
    settings = {"count": 1, "arrivals": 1, "parity": 0, "arrive": ARRIVE} | change
    body = BARRIER.format(**settings)
    if settings.get("before"):  # a phase that completes before
        body = body.replace("READY:\n", "mbarrier.arrive.shared.b64 %d11, [%r1], 4;\nREADY:\n")
    text = report(body)
    assert "[deadlock]" in text
    assert cause in text
    assert "barriers:\n    CTA (0, 0, 0) mbarrier 0x400" in text


def test_the_barriers_tell_who_used_them() -> None:
    text = report(BARRIER.format(count=2, arrivals=1, parity=0, arrive=ARRIVE))
    assert "mbarrier.arrive.shared.b64 by warp 0 of CTA (0, 0, 0) at PTX line" in text


@pytest.mark.parametrize(
    ("body", "kind", "lanes"),
    [
        # Lane 7 reads what nothing wrote, the others lane 0's word.
        (
            "setp.eq.u32 %p0, %r0, 7; selp.b32 %r5, 1024, 0, %p0; add.u32 %r5, %r5, %r1; setp.eq.u32 %p1, %r0, 0;\n"
            "@%p1 st.shared.b32 [%r1], %r0; bar.warp.sync -1; ld.shared.b32 %r6, [%r5];",
            "uninitialised",
            "lane 7",
        ),
        # Beyond `in`: that of the address that is named, the last.
        ("mul.wide.u32 %d5, %r0, 8; add.s64 %d6, %d1, %d5; ld.global.v2.b32 {%r5, %r6}, [%d6+4080];", "out-of-range",
         "lane 31"),
        ("setp.lt.u32 %p0, %r0, 4; @%p0 add.u32 %r5, %r6, 1;", "uninitialised", "lanes 0-3"),
        ("setp.lt.u32 %p0, %r0, 4; @!%p0 ld.shared.b32 %r5, [%r1+8192];", "out-of-range", "lanes 4-31"),
        ("and.b32 %r5, %r0, 5; setp.eq.u32 %p0, %r5, 5; @%p0 st.shared.b32 [%r1+2], %r0;", "misaligned",
         "lanes 5, 7, 13, 15, 21, 23, 29, 31"),
        # Two halves of a warp at different places: those that are not at the fault are not named.
        ("setp.lt.u32 %p0, %r0, 16; @%p0 bra DONE; ld.shared.b32 %r6, [%r1]; DONE:", "uninitialised", "lanes 16-31"),
    ],
)  # fmt: skip
def test_the_lanes_that_a_fault_is_of_are_named(body: str, kind: str, lanes: str) -> None:
    with pytest.raises(EmulationError) as caught:
        run(body)
    assert caught.value.kind == kind
    assert caught.value.place.lanes == lanes
    assert f"  at CTA (0, 0, 0), warp 0, {lanes} | PTX line" in str(caught.value)
