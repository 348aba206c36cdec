"""setmaxnreg: the registers of a CTA, which its warps give to each other (PTX ISA, "setmaxnreg")."""

from __future__ import annotations

from typing import Any

import pytest

from cute_kernels.emulator import Device, EmulationError, Report
from cute_kernels.emulator.ptx import parse
from cute_kernels.emulator.register_pool import launch_registers
from tests.instructions.kernels import SCHEDULES, module

ONE_CTA = ".minnctapersm 1"  # with 384 threads: 168 registers a thread


def launch(
    body: str,
    threads: int = 384,
    directives: str = ONE_CTA,
    schedule: str = "random",
    arch: str = "sm_90a",
    tolerate: tuple[str, ...] = (),
    registers: int | None = None,
) -> Report:
    given = f".reqntid {threads}, 1, 1 {directives}"
    params = [bytes(8), bytes(8), bytes(128)]
    device = Device(arch, schedule=schedule, tolerate=tolerate)
    return device.launch(
        module(body, arch, given),
        None,
        (1, 1, 1),
        (threads, 1, 1),
        dynamic_shared=64,
        params=params,
        registers=registers,
    )


def faults(body: str, **options: Any) -> EmulationError:
    with pytest.raises(EmulationError) as caught:
        launch(body, **options)
    return caught.value


def split(low: str, high: str) -> str:
    """Threads below 256, and the rest."""
    return f"""
    setp.lt.u32 %p0, %r0, 256;
    @%p0 bra LOW;
    {high}
    bra DONE;
LOW:
    {low}
DONE:
"""


def specialised(decrease: int = 40, increase: int = 232) -> str:
    return split(
        f"setmaxnreg.inc.sync.aligned.u32 {increase};", f"setmaxnreg.dec.sync.aligned.u32 {decrease};"
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warpgroups_that_ask_for_what_another_gives_back(schedule: str) -> None:
    assert launch(specialised(), schedule=schedule).warnings == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_increase_that_nothing_can_satisfy_is_a_deadlock(schedule: str) -> None:
    # 12 warps of 168 registers a thread; 4 of 80 and 8 of 224 make 67584 registers, and 64512 were launched with.
    fault = faults(specialised(80, 224), schedule=schedule)
    assert fault.kind == "deadlock"
    text = str(fault)
    assert "168 registers a thread" in text
    assert "64512" in text
    assert "at most 208" in text
    assert "at most 56" in text


def test_one_multiple_of_eight_more_than_fits_is_a_deadlock() -> None:
    launch(specialised(40, 232))
    assert faults(specialised(40, 240)).kind == "deadlock"
    assert faults(specialised(48, 232)).kind == "deadlock"


def test_an_increase_waits_for_a_decrease_behind_a_barrier() -> None:
    first = "setmaxnreg.inc.sync.aligned.u32 232;\n bar.sync 1, 384;"
    then = "setmaxnreg.dec.sync.aligned.u32 40;"
    launch(split(first, then + "\n bar.sync 1, 384;"))
    assert faults(split(first, "bar.sync 1, 384;\n" + then)).kind == "deadlock"


def test_registers_can_be_given_back_again() -> None:
    low = (
        "setmaxnreg.inc.sync.aligned.u32 232;\n bar.sync 1, 256;\n setmaxnreg.dec.sync.aligned.u32 128;\n"
        "bar.sync 3;"
    )
    high = "setmaxnreg.dec.sync.aligned.u32 40;\n bar.sync 3;\n setmaxnreg.inc.sync.aligned.u32 248;"
    launch(split(low, high))
    assert faults(split(low, high.replace("248", "256"))).kind == "deadlock"


def test_a_warp_that_exits_keeps_its_registers() -> None:
    assert faults(split("setmaxnreg.inc.sync.aligned.u32 176;", "ret;")).kind == "deadlock"


@pytest.mark.parametrize("count", [0, 16, 23, 36, 257, 264])
def test_counts_that_the_isa_does_not_allow_are_refused(count: int) -> None:
    fault = faults(f"setmaxnreg.dec.sync.aligned.u32 {count};")
    assert fault.kind == "registers"
    assert "24 to 256" in str(fault)


def test_targets_without_it_are_refused() -> None:
    fault = faults("setmaxnreg.dec.sync.aligned.u32 40;", arch="sm_100")
    assert fault.kind == "unknown-instruction"
    assert "sm_90a" in str(fault)


def test_a_decrease_upwards_and_an_increase_downwards_are_refused() -> None:
    fault = faults("setmaxnreg.dec.sync.aligned.u32 176;")
    assert fault.kind == "registers"
    assert "168" in str(fault)
    assert faults("setmaxnreg.inc.sync.aligned.u32 160;").kind == "registers"
    launch("setmaxnreg.dec.sync.aligned.u32 168;")
    launch("setmaxnreg.inc.sync.aligned.u32 168;")


ONE_WARP_LEFT_OUT = """
    setp.lt.u32 %p0, %r0, 32;
    @%p0 bra DONE;
    setmaxnreg.dec.sync.aligned.u32 40;
DONE:
    {after}
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("after", ["", "bar.sync 0;", "setmaxnreg.dec.sync.aligned.u32 32;"])
def test_a_warp_of_the_warpgroup_that_does_not_execute_it_is_a_fault(after: str, schedule: str) -> None:
    fault = faults(ONE_WARP_LEFT_OUT.format(after=after), threads=128, schedule=schedule)
    assert fault.kind == "registers"
    assert "warpgroup" in str(fault)


def test_lanes_that_do_not_execute_it_are_a_fault() -> None:
    body = "setp.eq.u32 %p0, %r0, 3;\n @!%p0 setmaxnreg.dec.sync.aligned.u32 40;\n bar.sync 0;"
    assert faults(body, threads=128).kind in ("divergence", "deadlock")


def test_fewer_than_four_warps_are_no_warpgroup() -> None:
    fault = faults("setmaxnreg.dec.sync.aligned.u32 40;", threads=192)
    assert fault.kind == "registers"
    assert "warps 4 to 5" in str(fault)


def test_a_second_one_needs_a_barrier_of_the_warpgroup() -> None:
    two = "setmaxnreg.dec.sync.aligned.u32 40;\n{}\n setmaxnreg.dec.sync.aligned.u32 32;"
    assert faults(two.format("")).kind == "registers"
    assert "bar.sync" in str(faults(two.format("bar.warp.sync -1;")))
    launch(two.format("bar.sync 0;"))


def test_other_practice_is_a_warning_where_it_is_tolerated() -> None:
    body = split(
        "setmaxnreg.inc.sync.aligned.u32 176;",
        """
    and.b32 %r2, %r0, 64;
    setp.ne.u32 %p1, %r2, 0;
    @%p1 bra OTHERS;
    setmaxnreg.dec.sync.aligned.u32 152;
    bra DONE;
OTHERS:
    setmaxnreg.dec.sync.aligned.u32 24;
""",
    )
    assert faults(body).kind == "registers"
    report = launch(body, tolerate=("setmaxnreg",))
    assert any("warpgroup" in warning for warning in report.warnings)


def test_without_a_number_at_entry_it_may_have_no_effect() -> None:
    report = launch(specialised(), directives="")
    assert len(report.warnings) == 1
    assert "may have no effect" in report.warnings[0]
    assert "min_blocks_per_mp" in report.warnings[0]
    # Whatever it was launched with, a CTA has no more than the 65536 registers of an SM.
    fault = faults(specialised(64, 232), directives="")
    assert fault.kind == "deadlock"
    assert "65536" in str(fault)


@pytest.mark.parametrize(
    ("threads", "directives", "registers"),
    # What ptxas 13.4 gives a kernel that uses setmaxnreg, by cuobjdump -res-usage.
    [
        (160, ONE_CTA, 255),
        (192, ONE_CTA, 255),
        (288, ONE_CTA, 168),
        (320, ONE_CTA, 168),
        (384, ONE_CTA, 168),
        (512, ONE_CTA, 128),
        (640, ONE_CTA, 96),
        (384, ".maxnreg 96", 96),
        (384, "", None),
    ],
)
def test_registers_at_entry(threads: int, directives: str, registers: int | None) -> None:
    text = module("", "sm_90a", f".reqntid {threads}, 1, 1 {directives}")
    assert launch_registers(parse(text).kernels["kernel"]) == registers


def test_the_cubin_knows_better() -> None:
    launch(specialised(40, 120), directives=".maxnreg 104", registers=96)
    fault = faults(specialised(40, 128), directives=".maxnreg 104", registers=96)
    assert fault.kind == "deadlock"
    assert "96 registers a thread" in str(fault)


def test_more_registers_than_an_sm_has_are_refused() -> None:
    assert faults("", registers=176).kind == "bad-launch"
    launch("", registers=168)
    launch("", directives=".maxnreg 200")  # it may be compiled to less, unless it has setmaxnreg
    assert faults(specialised(), directives=".maxnreg 200").kind == "bad-launch"
