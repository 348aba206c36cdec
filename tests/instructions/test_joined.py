"""Loads and stores of shared memory that are executed together: what they move, and whose faults are reported."""

from __future__ import annotations

import numpy as np
import pytest

from cute_kernels.emulator import EmulationError
from cute_kernels.emulator.batches import Batches
from tests.instructions.kernels import run

THREAD = "shl.b32 %r2, %r0, 4;\nadd.u32 %r3, %r1, %r2;"  # %r3: 16 bytes for each thread
FILL = "\n".join(f"st.shared.b32 [%r3+{512 * i + 4 * j}], %r0;" for i in range(4) for j in range(4))


def test_stores_and_loads_keep_their_order() -> None:
    """Overlapping stores of two widths, and loads that come before and behind them, in one block."""
    lines = [
        THREAD,
        "st.shared.v4.b32 [%r3], {%r0, %r1, %r2, %r0};",
        "st.shared.b32 [%r3+4], %r2;",
        "ld.shared.b32 %r10, [%r3+4];",
        "ld.shared.v2.b32 {%r11, %r12}, [%r3+8];",
        "st.shared.b32 [%r3+4], %r0;",
        "ld.shared.b32 %r13, [%r3+4];",
        "ld.shared.b32 %r14, [%r3];",
        "mad.lo.u32 %r15, %r14, 16, %r1;",  # an address that a load held back gives
        "ld.shared.b32 %r14, [%r15+4];",
        *(f"st.global.b32 [%d3+{128 * i}], %r{r};" for i, r in enumerate((10, 11, 12, 13, 14))),
    ]
    out, _ = run("\n".join(lines))
    thread = np.arange(32, dtype=np.uint32)
    np.testing.assert_array_equal(out[:32], 16 * thread)
    np.testing.assert_array_equal(out[32:64], 16 * thread)
    np.testing.assert_array_equal(out[64:96], thread)
    np.testing.assert_array_equal(out[96:128], thread)
    np.testing.assert_array_equal(out[128:160], thread)


@pytest.mark.parametrize("bad", [1, 3])
def test_the_load_that_finds_nothing_is_named(bad: int) -> None:
    loads = [f"ld.shared.b32 %r{10 + i}, [%r3+{1024 if i == bad else 4 * i}];" for i in range(4)]
    fill = [f"st.shared.b32 [%r3+{4 * i}], %r0;" for i in range(4)]
    with pytest.raises(EmulationError) as caught:
        run("\n".join([THREAD, *fill, *loads]))
    assert caught.value.kind == "uninitialised"
    assert loads[bad] in str(caught.value)


@pytest.mark.parametrize(("offset", "kind"), [(4096, "out-of-range"), (2, "misaligned")])
@pytest.mark.parametrize("name", ["ld", "st"])
def test_a_bad_address_is_named(name: str, offset: int, kind: str) -> None:
    lines = [THREAD, FILL]
    text = "ld.shared.b32 %r1{0}, [%r3+{1}];" if name == "ld" else "st.shared.b32 [%r3+{1}], %r0;"
    accesses = [text.format(i, offset if i == 2 else 4 * i) for i in range(4)]
    with pytest.raises(EmulationError) as caught:
        run("\n".join([*lines, *accesses]))
    assert caught.value.kind == kind and accesses[2] in str(caught.value)


def test_an_mbarrier_is_no_data() -> None:
    lines = [THREAD, FILL]
    lines += ["setp.eq.u32 %p0, %r0, 0;", "@%p0 mbarrier.init.shared.b64 [%r1+2048], 1;", "bar.sync 0;"]
    lines += ["ld.shared.b32 %r10, [%r3];", "ld.shared.b32 %r11, [%r1+2048];"]
    report = reported(lines)
    assert report.startswith("barrier") and lines[-1] in report


# %r4: what the thread beside wrote, or the other warp.
@pytest.mark.parametrize("beside", [16, 512])
@pytest.mark.parametrize("synchronised", [False, True])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ld.shared.b32 %r10, [%r3+4];", "ld.shared.b32 %r11, [%r4];"),
        ("st.shared.b32 [%r3+8], %r0;", "st.shared.b32 [%r4], %r2;"),
        ("ld.shared.b32 %r10, [%r3+4];", "st.shared.b32 [%r4], %r2;"),
    ],
)
def test_what_other_lanes_wrote(beside: int, synchronised: bool, first: str, second: str) -> None:
    lines = [THREAD, f"xor.b32 %r4, %r3, {beside};"]
    lines += ["st.shared.b32 [%r3], %r0;", "st.shared.b32 [%r3+4], %r0;"]
    lines += ["bar.sync 0;"] * synchronised
    report = reported([*lines, first, second], threads=64)
    assert report == reported([*lines, first, second], threads=64, joined=False)
    assert bool(report) != synchronised
    assert synchronised or second in report


@pytest.mark.parametrize("waits", [False, True])
def test_reads_count_against_later_writes(waits: bool) -> None:
    """Each warp reads what the other wrote, then writes its own place again."""
    lines = [THREAD, "xor.b32 %r4, %r3, 512;"]
    lines += ["st.shared.b32 [%r3], %r0;", "st.shared.b32 [%r3+4], %r0;", "bar.sync 0;"]
    lines += ["ld.shared.b32 %r10, [%r4];", "ld.shared.b32 %r11, [%r4+4];"]
    lines += ["bar.sync 0;"] * waits + ["setp.eq.u32 %p0, %r0, %r0;", "mov.b32 %r12, 0;", "SPIN:"]
    lines += ["add.u32 %r12, %r12, 1;", "setp.lt.u32 %p1, %r12, 2000;", "@%p1 bra SPIN;"]
    lines += ["st.shared.b32 [%r3], %r10;", "st.shared.b32 [%r3+4], %r11;"]
    report = reported(lines, threads=64)
    assert report == reported(lines, threads=64, joined=False)
    assert report.startswith("race") != waits and ("the read of it by warp" in report) != waits


def test_lanes_that_store_to_one_place() -> None:
    lines = [
        THREAD,
        "st.shared.b32 [%r3], %r0;",
        "st.shared.b32 [%r1+512], %r0;",
        "st.shared.b32 [%r1+516], %r0;",
    ]
    assert reported(lines) == reported(lines, joined=False)


def reported(lines: list[str], threads: int = 32, joined: bool = True) -> str:
    """The kind and the text of the fault that a body meets, "" for none."""
    with pytest.MonkeyPatch.context() as patch:
        if not joined:
            patch.setattr(Batches, "take", lambda *_: None)
        try:
            run("\n".join(lines) + ("\n" if joined else "\n// one by one"), threads=threads)
        except EmulationError as fault:
            return f"{fault.kind} {fault}"
    return ""
