"""Launches side by side: memory that they share or have to themselves, what orders them, what a fault says."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cute_kernels.emulator import Device, EmulationError, Launch
from tests.instructions.kernels import SCHEDULES, module

# Every rank writes a word of its own into the shared buffer, tells the other by a flag there, waits for the flag of the
# other and puts the other's word into its own memory. The first word of its own memory is its rank.
EXCHANGE = """
    setp.ne.u32 %p1, %r0, 0;
    @%p1 bra DONE;
    ld.global.u32 %r2, [%d1];            // the rank
    xor.b32 %r3, %r2, 1;
    mul.wide.u32 %d5, %r2, 4;
    add.s64 %d5, %d5, %d0;
    mul.wide.u32 %d6, %r3, 4;
    add.s64 %d6, %d6, %d0;
    add.u32 %r4, %r2, 40;
    st.global.u32 [%d5], %r4;
    red.release.{tell}.global.add.u32 [%d5+64], 1;
SPIN:
    ld.acquire.{hear}.global.u32 %r5, [%d6+64];
    setp.eq.u32 %p2, %r5, 0;
    @%p2 bra SPIN;
    ld.global.u32 %r6, [%d6];
    st.global.u32 [%d1+4], %r6;
DONE:
"""


def pointer(array: np.ndarray) -> bytes:
    return array.ctypes.data.to_bytes(8, "little")


def exchange(body: str, schedule: str = "random", seed: int = 0, own: int | None = None) -> list[int]:
    """Runs two ranks; gives what each put into its own memory. own: the rank whose memory both get."""
    device = Device("sm_100a", num_sms=1, schedule=schedule, seed=seed, step_limit=100_000)
    shared = np.zeros(64, np.uint32)
    device.register(shared.ctypes.data, shared.nbytes, "shared")
    private = [np.array([rank, 0, 0, 0], np.uint32) for rank in range(2)]
    launches = [
        Launch(
            module(body),
            "kernel",
            (1, 1, 1),
            (32, 1, 1),
            params=[pointer(shared), pointer(private[rank if own is None else own]), bytes(128)],
            memory=[(private[rank].ctypes.data, private[rank].nbytes, f"memory of rank {rank}")],
        )
        for rank in range(2)
    ]
    reports = device.launch_all(launches)
    assert [report.kernel for report in reports] == ["kernel"] * 2
    return [int(words[1]) for words in private]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", range(2))
def test_ranks_exchange_words(seed: int, schedule: str) -> None:
    assert exchange(EXCHANGE.format(tell="sys", hear="sys"), schedule, seed) == [41, 40]


@pytest.mark.parametrize(("tell", "hear"), [("gpu", "sys"), ("sys", "gpu"), ("gpu", "gpu")])
def test_only_system_scope_orders_ranks(tell: str, hear: str) -> None:
    with pytest.raises(EmulationError, match=r"red\.release\.sys") as caught:
        exchange(EXCHANGE.format(tell=tell, hear=hear))
    assert caught.value.kind == "race" and caught.value.place.launch in (0, 1)
    assert f"launch {1 - caught.value.place.launch}, CTA" in caught.value.message


def test_the_memory_of_a_rank_is_its_own() -> None:
    with pytest.raises(EmulationError) as caught:
        exchange(EXCHANGE.format(tell="sys", hear="sys"), own=1)
    assert caught.value.kind == "out-of-range" and caught.value.place.launch == 0


def test_ranks_that_wait_for_each_other_in_vain() -> None:
    silent = EXCHANGE.format(tell="sys", hear="sys").replace("red.release.sys", "@%p1 red.release.sys")
    with pytest.raises(EmulationError) as caught:
        exchange(silent, "lazy")
    assert caught.value.kind == "deadlock"


def test_what_a_rank_heard_it_passes_on() -> None:
    """Rank 0 tells a CTA of rank 1 at system scope, which tells another CTA of rank 1 at gpu scope."""
    body = """
        mov.u32 %r7, %ctaid.x;
        ld.global.u32 %r2, [%d1];
        setp.ne.u32 %p1, %r0, 0;
        @%p1 bra DONE;
        setp.eq.u32 %p4, %r2, 0;
        @!%p4 bra HEAR;
        setp.ne.u32 %p5, %r7, 0;
        @%p5 bra DONE;
        st.global.u32 [%d0], 9;
        red.release.sys.global.add.u32 [%d0+64], 1;
        bra DONE;
    HEAR:
        setp.ne.u32 %p5, %r7, 0;
        @%p5 bra SECOND;
    SPIN:
        ld.acquire.sys.global.u32 %r5, [%d0+64];
        setp.eq.u32 %p2, %r5, 0;
        @%p2 bra SPIN;
        red.release.gpu.global.add.u32 [%d0+68], 1;
        bra DONE;
    SECOND:
        ld.acquire.gpu.global.u32 %r5, [%d0+68];
        setp.eq.u32 %p2, %r5, 0;
        @%p2 bra SECOND;
        ld.global.u32 %r6, [%d0];
        st.global.u32 [%d1+4], %r6;
    DONE:
    """
    device = Device("sm_100a", num_sms=2, schedule="random")
    arrays = [np.zeros(64, np.uint32), np.array([0, 0], np.uint32), np.array([1, 0], np.uint32)]
    for array in arrays:
        device.register(array.ctypes.data, array.nbytes)
    launches = [
        Launch(
            module(body), "kernel", (2, 1, 1), (32, 1, 1), params=[pointer(arrays[0]), pointer(a), bytes(128)]
        )
        for a in arrays[1:]
    ]
    device.launch_all(launches)
    assert arrays[2][1] == 9


def test_every_rank_has_its_own_variables() -> None:
    text = module(
        "ld.global.u32 %r2, [count]; add.u32 %r2, %r2, 1; st.global.u32 [count], %r2; st.global.u32 [%d0], %r2;"
    )
    text = text.replace(".extern", ".global .align 4 .u32 count = 5;\n.extern", 1)
    device = Device("sm_100a")
    out = [np.zeros(1, np.uint32) for _ in range(2)]
    launches = []
    for array in out:
        device.register(array.ctypes.data, array.nbytes)
        launches.append(
            Launch(text, None, (1, 1, 1), (1, 1, 1), params=[pointer(array), bytes(8), bytes(128)])
        )
    device.launch_all(launches)
    assert [int(array[0]) for array in out] == [6, 6]
    device.launch_all(launches)
    assert [int(array[0]) for array in out] == [7, 7]  # they last, as those of a module that stays loaded


def test_a_wrong_launch_is_refused_before_any_runs() -> None:
    device = Device("sm_100a")
    out = np.zeros(32, np.uint32)
    device.register(out.ctypes.data, out.nbytes)
    good = Launch(
        module("st.global.u32 [%d3], 1;"),
        None,
        (1, 1, 1),
        (32, 1, 1),
        params=[pointer(out), bytes(8), bytes(128)],
    )
    bad = Launch(module(""), None, (1, 1, 1), (32, 1, 1))
    with pytest.raises(EmulationError, match="0 parameters"):
        device.launch_all([good, bad])
    assert not out.any()


def test_the_emulator_needs_numpy_alone() -> None:
    block = "import sys; sys.modules.update(torch=None, cutlass=None, cuda=None)\n"
    check = "from cute_kernels.emulator import Device, run; Device('sm_90a')"
    subprocess.run([sys.executable, "-c", block + check], check=True)
