"""What docs/emulator.md lists under "What is not modelled" is refused by its name; what it ignores has no effect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cute_kernels.emulator import EmulationError
from tests.instructions.kernels import run

LISTED = (
    Path(__file__).parents[2].joinpath("docs", "emulator.md").read_text().split("## What is not modelled")[1]
)

EIGHT = "{%r10, %r11, %r12, %r13, %r14, %r15, %r16, %r17}"
FOUR = "{%r10, %r11, %r12, %r13}"
DEFINED = (
    "mov.u32 %r2, 1; mov.u32 %r3, 1; mov.u32 %r4, 0; setp.eq.u32 %p0, 0, 0; mov.b64 %d5, p_map; mov.b64 %d10, 0; "
    "mov.b64 %d11, 0;" + " ".join(f"mov.u32 %r{i}, 0;" for i in range(5, 18))
)
REFUSED = {  # as the page spells it: an instruction, the architecture, what the fault has to name
    "wmma": (f"wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {EIGHT}, [%r1];", "90", "wmma.load.a"),
    "`mma.sp`": (
        f"mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {FOUR}, {FOUR}, {FOUR}, {FOUR}, %r10, 0;",
        "90",
        "mma.sp.sync",
    ),
    "`mma.sync` of single bits": (
        f"mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {FOUR}, {FOUR}, {{%r10, %r11}}, {FOUR};",
        "90",
        "s32.b1.b1",
    ),
    "`m8n8k4` of f16": (
        f"mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {EIGHT}, {{%r10, %r11}}, {{%r10, %r11}}, {EIGHT};",
        "90",
        "m8n8k4",
    ),
    "`wgmma.mma_async.sp`": (
        f"wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.f16.f16 {FOUR}, %d10, %d11, %r14, 0, %p0, 1, 1, 0, 0;",
        "90",
        "wgmma.mma_async.sp",
    ),
    "sparse (`.sp`)": (
        "tcgen05.mma.sp.cta_group::1.kind::f16 [%r2], %d10, %d11, [%r3], %r4, %p0;",
        "100",
        "tcgen05.mma.sp",
    ),
    "weight-stationary (`.ws`)": (
        "tcgen05.mma.ws.cta_group::1.kind::f16 [%r2], %d10, %d11, %r4, %p0;",
        "100",
        "tcgen05.mma.ws",
    ),
    "`.ashift`": (
        "tcgen05.mma.cta_group::1.kind::f16.ashift [%r2], [%r3], %d11, %r4, %p0;",
        "100",
        r"\.ashift",
    ),
    "disabled output lanes": (
        "setp.eq.u32 %p1, %r0, 0; @%p1 tcgen05.mma.cta_group::1.kind::f16 [%r2], %d10, %d11, %r4, "
        "{%r2, %r6, %r7, %r8}, %p0;",
        "100",
        "disabled output lanes",
    ),
    "`tcgen05.shift`": ("tcgen05.shift.cta_group::1.down [%r2];", "100", "tcgen05.shift"),
    "`tcgen05.ld.red`": (
        "tcgen05.ld.red.sync.aligned.32x32b.x2.min.u32 {%r10, %r11}, %r12, [%r2];",
        "103",
        "tcgen05.ld.red",
    ),
    "im2col": (
        "cp.async.bulk.tensor.3d.shared::cta.global.im2col.mbarrier::complete_tx::bytes [%r1], "
        "[%d5, {%r4, %r4, %r4}], [%r3], {%r4};",
        "90",
        "im2col",
    ),
    "gather": (
        "cp.async.bulk.tensor.2d.shared::cta.global.tile::gather4.mbarrier::complete_tx::bytes [%r1], "
        "[%d5, {%r4, %r4, %r4, %r4, %r4}], [%r3];",
        "100",
        "gather4",
    ),
    "scatter": (
        "cp.async.bulk.tensor.2d.global.shared::cta.tile::scatter4.bulk_group [%d5, {%r4, %r4, %r4, %r4, %r4}], [%r1];",
        "100",
        "scatter4",
    ),
    "`multimem`": ("multimem.ld_reduce.relaxed.sys.global.add.f32 %r10, [%d0];", "90", "multimem.ld_reduce"),
    "textures": (f"tex.2d.v4.f32.s32 {FOUR}, [%d0, {{%r2, %r3}}];", "90", "tex.2d"),
    "surfaces": ("suld.b.1d.b32.trap {%r10}, [%d0, {%r2}];", "90", "suld.b"),
    "`fence.proxy.alias`": ("fence.proxy.alias;", "90", "fence.proxy.alias"),
    "video instructions": ("vadd.s32.s32.s32 %r10, %r2, %r2;", "90", "vadd"),
    "`alloca`": ("alloca.u64 %d4, %d5;", "90", "alloca"),
    "`brkpt`": ("brkpt;", "90", "brkpt"),
    "`pmevent`": ("pmevent 3;", "90", "pmevent"),
    "`%envreg`": ("mov.u32 %r2, %envreg3;", "90", "%envreg3"),
    "`%pm`": ("mov.u32 %r2, %pm0;", "90", "%pm0"),
}


@pytest.mark.parametrize("listed", REFUSED)
def test_what_is_listed_is_refused_by_its_name(listed: str) -> None:
    text, arch, named = REFUSED[listed]
    assert listed in LISTED
    with pytest.raises(EmulationError, match=named) as caught:
        run(f"{DEFINED} {text}", arch=f"sm_{arch}a")
    assert caught.value.kind == "unknown-instruction"


IGNORED = {
    "prefetches": "prefetch.global.L2 [%d1]; prefetchu.L1 [%d1];",
    "`createpolicy`": "createpolicy.fractional.L2::evict_last.b64 %d4, 1.0;",
    "cache hints": "createpolicy.fractional.L2::evict_last.b64 %d4, 1.0; ld.global.L2::cache_hint.u32 %r2, [%d1], %d4;",
    "`applypriority`": "applypriority.global.L2::evict_normal [%d1], 128;",
    "`discard`": "discard.global.L2 [%d1], 128;",
    "`nanosleep`": "nanosleep.u32 20;",
}


@pytest.mark.parametrize("listed", IGNORED)
def test_what_is_listed_without_effect_has_none(listed: str) -> None:
    assert listed in LISTED
    source = np.arange(1024, dtype=np.uint32)
    out, _ = run(f"mov.u32 %r2, 0; {IGNORED[listed]} st.global.u32 [%d3], %r0;", source)
    assert (out[:32] == np.arange(32)).all() and (source == np.arange(1024)).all()


# Every word is 7; lane 3 makes 16 bytes of them zeros.
BULK = """
    mov.u32 %r2, 7;
    mad.lo.u32 %r3, %r0, 4, %r1;
    st.shared.u32 [%r3], %r2;
    bar.sync 0;
    setp.ne.u32 %p0, %r0, 3;
    @!%p0 st.bulk.weak.shared::cta [%r1+8], {size}, 0;
    {sync}
    ld.shared.u32 %r4, [%r3];
    st.global.u32 [%d3], %r4;
"""


def test_a_bulk_store_of_zeros() -> None:
    out, _ = run(BULK.format(size=16, sync="bar.sync 0;"), out_words=32)
    assert (out == np.where((np.arange(32) >= 2) & (np.arange(32) < 6), 0, 7)).all()


@pytest.mark.parametrize(
    ("changes", "arch", "kind"),
    [
        ({"sync": ""}, "sm_100a", "race"),
        ({"size": 12}, "sm_100a", "misaligned"),
        ({"size": 1 << 16}, "sm_100a", "out-of-range"),
        ({}, "sm_90a", "unknown-instruction"),
    ],
)
def test_a_bulk_store_of_zeros_that_is_wrong(changes: dict[str, object], arch: str, kind: str) -> None:
    with pytest.raises(EmulationError) as caught:
        run(BULK.format(**{"size": 16, "sync": "bar.sync 0;"} | changes), arch=arch)
    assert caught.value.kind == kind
