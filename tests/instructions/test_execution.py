"""Control flow, plain memory, atomics, launches: what runs and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cute_kernels.emulator import Device, EmulationError
from cute_kernels.emulator.ptx import PtxError
from tests.instructions.kernels import SCHEDULES, module, run


def fault(body: str, **options: Any) -> EmulationError:
    with pytest.raises(EmulationError) as caught:
        run(body, **options)
    return caught.value


# --- control flow -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes_that_loop_a_different_number_of_times(schedule: str) -> None:
    body = """
    mov.u32 %r2, 0;
    mov.u32 %r3, 0;
LOOP:
    setp.ge.u32 %p0, %r3, %r0;
    @%p0 bra DONE;
    add.u32 %r3, %r3, 1;
    and.b32 %r4, %r3, 1;
    setp.eq.u32 %p1, %r4, 0;
    @%p1 bra LOOP;
    add.u32 %r2, %r2, %r3;
    bra LOOP;
DONE:
    st.global.u32 [%d3], %r2;
    """
    out, _ = run(body, threads=96, schedule=schedule)
    assert out[:96].tolist() == [sum(i for i in range(1, t + 1) if i % 2) for t in range(96)]


def test_lanes_meet_again_where_their_paths_join() -> None:
    body = """
    setp.lt.u32 %p0, %r0, 7;
    mov.u32 %r2, 1;
    @%p0 bra LOW;
    mov.u32 %r2, 2;
LOW:
    shfl.sync.idx.b32 %r3, %r2, 31, 31, -1;
    st.global.u32 [%d3], %r3;
    """
    out, _ = run(body)
    assert (out[:32] == 2).all()


def test_a_branch_table() -> None:
    body = """
    and.b32 %r2, %r0, 3;
    TABLE: .branchtargets A, B, C, A;
    brx.idx %r2, TABLE;
A:  mov.u32 %r3, 10; bra DONE;
B:  mov.u32 %r3, 20; bra DONE;
C:  mov.u32 %r3, 30;
DONE:
    st.global.u32 [%d3], %r3;
    """
    out, _ = run(body)
    assert out[:32].tolist() == [10, 20, 30, 10] * 8


def test_a_shuffle_that_part_of_its_members_never_reach() -> None:
    body = """
    setp.lt.u32 %p0, %r0, 16;
    @%p0 bra DONE;
    shfl.sync.idx.b32 %r3, %r0, 0, 31, -1;
DONE:
    """
    assert fault(body).kind in ("deadlock", "divergence")


def test_an_executing_lane_that_the_member_mask_leaves_out() -> None:
    assert fault("shfl.sync.idx.b32 %r3, %r0, 0, 31, 0xFFFF;").kind == "divergence"


def test_a_member_mask_may_name_lanes_that_the_launch_does_not_have() -> None:
    out, _ = run("elect.sync %r2|%p0, -1; selp.u32 %r3, 7, 0, %p0; st.global.u32 [%d3], %r3;", threads=12)
    assert out[:12].tolist() == [7] + [0] * 11


def test_exited_lanes_take_no_further_part() -> None:
    body = """
    setp.ge.u32 %p0, %r0, 20;
    @%p0 exit;
    st.global.u32 [%d3], %r0;
    bar.sync 0;
    """
    out, _ = run(body, threads=64)
    assert out[:20].tolist() == list(range(20))
    assert (out[20:] == 0xFBFBFBFB).all()


def test_a_warp_of_fewer_lanes() -> None:
    out, _ = run("st.global.u32 [%d3], %r0;", threads=45)
    assert out[:45].tolist() == list(range(45))
    assert (out[45:] == 0xFBFBFBFB).all()


def test_the_step_limit_ends_an_endless_loop() -> None:
    assert fault("LOOP: add.u32 %r0, %r0, 1; st.global.u32 [%d3], %r0; bra LOOP;").kind == "step-limit"


def test_polling_memory_that_nobody_changes_is_a_deadlock() -> None:
    body = "LOOP: ld.global.u32 %r2, [%d1]; setp.eq.u32 %p0, %r2, 0; @%p0 bra LOOP;"
    assert fault(body).kind == "deadlock"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ctas_hand_over_through_global_memory(schedule: str) -> None:
    body = """
    mov.u32 %r2, %ctaid.x;
    setp.ne.u32 %p0, %r2, 1;
    setp.ne.u32 %p1, %r0, 0;
    @%p0 bra WAIT;
    @%p1 bra DONE;
    st.global.u32 [%d1+4], 42;
    red.release.gpu.global.add.u32 [%d1], 1;
    bra DONE;
WAIT:
    ld.acquire.gpu.global.u32 %r3, [%d1];
    setp.eq.u32 %p2, %r3, 0;
    @%p2 bra WAIT;
    ld.global.u32 %r4, [%d1+4];
    st.global.u32 [%d3], %r4;
DONE:
    """
    out, _ = run(body, np.zeros(16, np.uint32), grid=2, schedule=schedule)
    assert (out[:32] == 42).all()


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("ld.global.u32 %r2, [%d1+8192];", "out-of-range"),
        ("st.global.u32 [%d0+1024], %r0;", "out-of-range"),
        ("ld.global.u32 %r2, [%d1+2];", "misaligned"),
        ("ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%d1+8];", "misaligned"),
        ("ld.shared.u32 %r2, [%r1];", "uninitialised"),
        ("st.shared.u32 [%r1+4096], %r0;", "out-of-range"),
        ("ld.shared.u32 %r2, [0];", "out-of-range"),
        ("add.u32 %r2, %r3, 1;", "uninitialised"),
        ("mov.u32 %r2, %r3; st.global.u32 [%d0], %r2;", "uninitialised"),
        ("wgmma.fence.sync.aligned;", "unknown-instruction"),
        ("mov.u32 %r2, %envreg3;", "unknown-instruction"),
        ("trap;", "bad-launch"),
    ],
)
def test_what_faults_are_called(body: str, kind: str) -> None:
    assert fault(body).kind == kind


def test_moving_and_packing_undefined_registers_is_no_use_of_them() -> None:
    body = """
    mov.u32 %r2, %r3;
    mov.b64 %d5, {%r0, %r2};
    mov.b64 {%r4, %r5}, %d5;
    st.global.u32 [%d3], %r4;
    """
    out, _ = run(body)
    assert out[:32].tolist() == list(range(32))
    assert fault("mov.b64 %d5, {%r2, %r3}; add.s64 %d6, %d5, 1;").kind == "uninitialised"


def test_a_fault_names_its_place() -> None:
    with pytest.raises(
        EmulationError,
        match=r"CTA \(1, 0, 0\), warp 1, lanes 0-31 \| PTX line \d+ \| `ld\.global\.u32 %r2, \[%d1\+8192\];`",
    ):
        run(
            "mov.u32 %r9, %ctaid.x; setp.eq.u32 %p0, %r9, 0; @%p0 bra END; setp.lt.u32 %p1, %r0, 32; @%p1 bra END;\n"
            "ld.global.u32 %r2, [%d1+8192];\nEND:",
            threads=64,
            grid=2,
        )


def test_narrow_loads_extend_and_narrow_stores_cut() -> None:
    body = """
    st.shared.u32 [%r1], 0x8190A0F5;
    ld.shared.s8 %h1, [%r1];
    ld.shared.u8 %h2, [%r1+1];
    ld.shared.s16 %r3, [%r1+2];
    ld.shared.u16 %r4, [%r1+2];
    cvt.s32.s16 %r5, %h1;
    cvt.u32.u16 %r6, %h2;
    st.global.v4.u32 [%d0], {%r3, %r4, %r5, %r6};
    mov.u32 %r7, 0x12345678;
    st.global.u8 [%d0+16], %r7;
    """
    out, _ = run(body, threads=1)
    assert out[:4].tolist() == [0xFFFF8190, 0x8190, 0xFFFFFFF5, 0xA0]
    assert out[4] == 0xFBFBFB78


def test_generic_addresses_reach_shared_and_global_memory() -> None:
    body = """
    cvt.u64.u32 %d5, %r1;
    cvta.shared.u64 %d6, %d5;
    st.u32 [%d6], 11;
    ld.shared.u32 %r2, [%r1];
    cvta.to.shared.u64 %d7, %d6;
    cvt.u32.u64 %r3, %d7;
    ld.shared.u32 %r4, [%r3];
    add.u32 %r4, %r4, %r2;
    st.u32 [%d0], %r4;
    isspacep.shared %p0, %d6;
    isspacep.global %p1, %d6;
    selp.u32 %r5, 1, 0, %p0;
    selp.u32 %r6, 1, 0, %p1;
    st.v2.u32 [%d0+8], {%r5, %r6};
    """
    out, _ = run(body, threads=1)
    assert (out[0], out[2], out[3]) == (22, 1, 0)


def test_printing_prints_nothing_and_other_calls_are_refused() -> None:
    body = """
    {
    .param .b64 param0;
    st.param.b64 [param0+0], %d1;
    .param .b64 param1;
    st.param.b64 [param1+0], %d0;
    .param .b32 retval0;
    call.uni (retval0), NAME, (param0, param1);
    ld.param.b32 %r3, [retval0+0];
    }
    st.global.u32 [%d3], %r0;
    """
    declared = ".extern .func (.param .b32 result) NAME (.param .b64 a, .param .b64 b);"
    for name in ("vprintf", "compute"):
        text = module(body).replace(".visible .entry", f"{declared}\n.visible .entry").replace("NAME", name)
        out = np.zeros(32, np.uint32)
        device = Device("sm_100a")
        device.register(out.ctypes.data, out.nbytes)
        params = [out.ctypes.data.to_bytes(8, "little"), bytes(8), bytes(128)]
        if name == "vprintf":
            device.launch(text, "kernel", (1, 1, 1), (32, 1, 1), params=params)
            assert out.tolist() == list(range(32))
        else:
            with pytest.raises(EmulationError, match="a call of compute is not modelled"):
                device.launch(text, "kernel", (1, 1, 1), (32, 1, 1), params=params)


def test_local_memory_belongs_to_a_thread() -> None:
    body = """
    .local .align 4 .b8 frame[16];
    mov.b64 %d5, frame;
    st.local.u32 [%d5+4], %r0;
    cvta.local.u64 %d6, %d5;
    ld.u32 %r2, [%d6+4];
    st.global.u32 [%d3], %r2;
    """
    out, _ = run(body)
    assert out[:32].tolist() == list(range(32))


@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics_on_one_word(space: str) -> None:
    target = "%d1" if space == "global" else "%r1"
    setup = "" if space == "global" else "setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [%r1], 0; bar.sync 0;"
    body = f"""
    {setup}
    atom.{space}.add.u32 %r2, [{target}], 1;
    st.global.u32 [%d3], %r2;
    bar.sync 0;
    atom.{space}.max.u32 %r3, [{target}], 1000;
    atom.{space}.cas.b32 %r4, [{target}], 1000, 7;
    """
    out, _ = run(body, np.zeros(16, np.uint32), threads=64)
    assert sorted(out[:64].tolist()) == list(range(64))


def test_floating_point_atomics() -> None:
    source = np.zeros(16, np.float32)
    run("red.global.add.f32 [%d1], 0f3F000000;", source, threads=64)
    assert source[0] == 32.0


# --- launches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 1025}, "1024 at most"),
        ({"grid": 3, "cluster": 2}, "not a multiple of the cluster"),
        ({"cluster": 32, "grid": 32}, "allows 16"),
        ({"shared": 300_000}, "bytes of shared memory"),
    ],
)
def test_launches_that_no_device_takes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EmulationError, match=message):
        run("", **options)


def test_code_for_another_architecture() -> None:
    device = Device("sm_90a")
    with pytest.raises(EmulationError, match="does not run on sm_90a"):
        device.launch(module(""), "kernel", (1, 1, 1), (32, 1, 1), params=[bytes(8), bytes(8), bytes(128)])


def test_parameters_must_fit() -> None:
    device = Device("sm_100a")
    with pytest.raises(EmulationError, match="2 parameters; the kernel has 3"):
        device.launch(module(""), "kernel", (1, 1, 1), (32, 1, 1), params=[bytes(8), bytes(8)])
    with pytest.raises(EmulationError, match="parameter 1 has 4 bytes"):
        device.launch(module(""), "kernel", (1, 1, 1), (32, 1, 1), params=[bytes(8), bytes(4), bytes(128)])


def test_ranges_may_not_overlap_and_can_be_taken_out() -> None:
    device = Device("sm_100a")
    memory = np.zeros(64, np.uint8)
    at = memory.ctypes.data
    device.register(at, 32, "first")
    with pytest.raises(ValueError, match="overlaps first"):
        device.register(at + 16, 32, "second")
    device.unregister(at)
    device.register(at + 16, 32, "second")
    with pytest.raises(ValueError, match="no registered range"):
        device.unregister(at)


@pytest.mark.parametrize(("option", "value"), [("schedule", "lucky"), ("num_sms", 0), ("arch", "sm_70")])
def test_devices_that_do_not_exist(option: str, value: object) -> None:
    options: dict[str, Any] = {"arch": "sm_100a", option: value}
    with pytest.raises(ValueError, match=option if option != "arch" else "architecture"):
        Device(**options)


def test_the_same_seed_gives_the_same_run() -> None:
    body = "atom.global.add.u32 %r2, [%d1], 1; st.global.u32 [%d3], %r2;"
    runs = [run(body, np.zeros(4, np.uint32), threads=256, seed=seed)[0].tolist() for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_registers_of_128_bits_are_halved_and_joined() -> None:
    body = """
    .reg .b128 %q<2>;
    mul.wide.u32 %d5, %r0, 16;
    add.s64 %d6, %d1, %d5;
    add.s64 %d7, %d0, %d5;
    ld.global.v2.b64 {%d8, %d9}, [%d6];
    mov.b128 %q0, {%d8, %d9};
    mov.b128 {%d10, %d11}, %q0;
    mov.b128 %q1, {%d11, %d10};
    mov.b128 {_, %d12}, %q1;
    st.global.v2.b64 [%d7], {%d12, %d11};
"""
    source = np.random.default_rng(1).integers(0, 1 << 32, 128, dtype=np.uint32)
    out, _ = run(body, source, 128)
    assert (out == source).all()
    with pytest.raises(PtxError, match="or to two of 64 bits"):
        run(".reg .b128 %q<2>; mov.b128 {%d1, %d2, %d3}, %q0;")
    moved = ".reg .b128 %q<2>; mov.b128 %q1, %q0; mov.b128 {%d5, %d6}, %q1;"
    run(moved)  # a register that holds nothing may be moved, not used
    assert fault(moved + "st.global.b64 [%d0], %d6;").kind == "uninitialised"


@pytest.mark.parametrize("name", ["div.u32", "rem.u32", "div.s32", "rem.s32", "div.u64", "rem.s64"])
def test_a_division_by_zero_is_told(name: str) -> None:
    """Of executing lanes alone: with a guard, in a branch, and by a literal."""
    letter = "d" if name.endswith("64") else "r"
    divide = f"{name} %{letter}5, %{letter}0, %{letter}6;"
    zero_at_3 = "sub.u32 %r6, %r0, 3; cvt.u64.u32 %d6, %r6; setp.eq.u32 %p0, %r0, {lane};"
    for lane, told in ((3, True), (4, False)):
        for body in (f"@%p0 {divide}", f"@!%p0 bra END; {divide} END:"):
            _, report = run(zero_at_3.format(lane=lane) + body)
            assert ["divides by 0" in warning for warning in report.warnings] == [True] * told
    for body in (zero_at_3.format(lane=0) + divide, f"{name} %{letter}5, %{letter}0, 0;"):
        _, report = run(body)
        assert ["divides by 0" in warning for warning in report.warnings] == [True]
    _, report = run(f"{name} %{letter}5, %{letter}0, 7; add.u32 %r6, %r0, 1; cvt.u64.u32 %d6, %r6; {divide}")
    assert report.warnings == []
