"""Instructions that are executed together give what they give one by one, and faults that name their own line."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cute_kernels.emulator import EmulationError
from cute_kernels.emulator.batches import Batches
from tests.instructions.kernels import run

REGISTERS = range(10, 34)  # %r10 to %r33 hold values
MMA = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"


def line(choose: random.Random) -> str:
    """One instruction on registers chosen at random; few enough that results are sources and targets again soon."""

    def r() -> str:
        return f"%r{choose.choice(REGISTERS)}"

    def several(count: int) -> str:
        return "{" + ", ".join(f"%r{i}" for i in choose.sample(REGISTERS, count)) + "}"

    kind = choose.choice(
        ["fma", "fma", "fma", "prmt", "prmt", "add", "mov", "guarded", "mma", "chain", "copy"]
    )
    if kind in ("fma", "guarded"):
        guard = "@%p0 " if kind == "guarded" else ""
        return f"{guard}fma.rn.bf16x2 {r()}, {r()}, {r()}, {r()};"
    if kind == "prmt":
        return f"prmt.b32 {r()}, {r()}, {r()}, {r()};"
    if kind in ("mov", "copy"):
        return f"mov.b32 {r()}, {r()};"
    if kind == "chain":
        accumulator = several(4)
        lines = [f"{MMA} {accumulator}, {several(4)}, {several(2)}, {accumulator};" for _ in range(3)]
        return "\n".join(
            [lines[0], "mov.b32 %r40, " + accumulator.strip("{}").split(",")[0] + ";", *lines[1:]]
        )
    if kind == "mma":
        return f"{MMA} {several(4)}, {several(4)}, {several(2)}, {several(4)};"
    return f"add.s32 {r()}, {r()}, {r()};"


def body(seed: int) -> str:
    choose = random.Random(seed)
    lines = ["setp.lt.u32 %p0, %r0, 9;", "mov.b32 %r40, 0;"]
    lines += [f"ld.global.b32 %r{r}, [%d4 + {128 * i}];" for i, r in enumerate(REGISTERS)]
    lines += [line(choose) for _ in range(40)]
    stored = [*REGISTERS, 40]
    return "\n".join([*lines, *(f"st.global.b32 [%d3 + {128 * i}], %r{r};" for i, r in enumerate(stored))])


@pytest.mark.parametrize("seed", range(40))
def test_random_blocks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(seed).normal(size=2 * 32 * len(REGISTERS)).astype(np.float32)
    source = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint32)  # pairs of bf16
    together, _ = run(body(seed), source, out_words=32 * (len(REGISTERS) + 1))
    monkeypatch.setattr(Batches, "take", lambda *_: None)
    apart, _ = run(body(seed) + "\n// one by one", source, out_words=32 * (len(REGISTERS) + 1))
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("bad", ["fma.rn.bf16x2 %r61, %r10, %r77, %r10;", f"{MMA} {{%r61, %r62, %r63, %r64}}, "
                                 "{%r10, %r10, %r10, %r77}, {%r10, %r10}, {%r10, %r10, %r10, %r10};"])  # fmt: skip
def test_an_undefined_source_is_reported_where_it_is_read(bad: str) -> None:
    good = bad.replace("%r77", "%r10")
    lines = ["mov.b32 %r10, %r0;", good.replace("%r6", "%r5"), bad, good.replace("%r6", "%r4")]
    with pytest.raises(EmulationError) as caught:
        run("\n".join(lines))
    assert caught.value.kind == "uninitialised" and "%r77" in str(caught.value)
    assert bad in str(caught.value)


def test_a_copy_of_nothing_behind_instructions_held_back() -> None:
    """Moving an undefined register is no fault; what was held back before it is executed all the same."""
    lines = ["mov.b32 %r10, %r0;"]
    lines += [f"prmt.b32 %r{r}, %r10, %r10, %r10;" for r in (11, 12)]
    lines += ["mov.b64 %d10, {%r77, %r78};", "add.s32 %r13, %r11, %r12;", "st.global.b32 [%d3], %r13;"]
    out, _ = run("\n".join(lines))
    expected, _ = run("prmt.b32 %r11, %r0, %r0, %r0;\nadd.s32 %r13, %r11, %r11;\nst.global.b32 [%d3], %r13;")
    np.testing.assert_array_equal(out, expected)
