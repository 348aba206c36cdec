"""wgmma: what orders its registers and shared memory, and what is refused. The values: test_recorded_wgmma.py."""

from __future__ import annotations

import numpy as np
import pytest

from cute_kernels.emulator import EmulationError
from cute_kernels.emulator.umma_descriptors import DescriptorError, UnsupportedForm
from cute_kernels.emulator.wgmma import decode_descriptor, form
from tests.instructions.kernels import SCHEDULES, run

N = 16
DESCRIPTOR = 256 >> 4 << 32 | 128 >> 4 << 16  # K-major, no swizzling: 8 x 16 bytes next to each other
# D (8 registers a thread) = 2 + the sum over 16 of A = 1 times B = 3. Shared memory: B.
BODY = """
    mov.u32 %r10, {b};
    mad.lo.u32 %r11, %r0, 4, %r1;
    st.shared.b32 [%r11], %r10;
    {proxy_fence}
    bar.sync 0;
    mov.u32 %r20, 0x3f803f80;
    mov.u32 %r21, 0x3f803f80;
    mov.u32 %r22, 0x3f803f80;
    mov.u32 %r23, 0x3f803f80;
    {initialise}
    shr.u32 %r12, %r1, 4;
    cvt.u64.u32 %d10, %r12;
    or.b64 %d10, %d10, {descriptor};
    setp.eq.u32 %p0, 0, 0;
    {fence}
    {issue}
    {behind}
    {commit}
    {before_wait}
    {wait}
    {store}
"""
ZEROS = " ".join(f"mov.b32 %r{30 + i}, 0x40000000;" for i in range(8))
PRODUCT = (
    "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%r30, %r31, %r32, %r33, %r34, %r35, %r36, %r37}, "
    "{%r20, %r21, %r22, %r23}, %d10, %p0, 1, 1, 0;"
)
NARROW = (
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r30, %r31, %r32, %r33}, "
    "{%r20, %r21, %r22, %r23}, %d10, %p0, 1, 1, 0;"
)
FENCE = "wgmma.fence.sync.aligned;"
COMMIT = "wgmma.commit_group.sync.aligned;"
WAIT = "wgmma.wait_group.sync.aligned 0;"
STORE = " ".join(f"st.global.b32 [%d3+{512 * i}], %r{30 + i};" for i in range(8))


def body(**changes: str) -> str:
    parts = {
        "b": "0x40404040",
        "proxy_fence": "fence.proxy.async;",
        "initialise": ZEROS,
        "descriptor": hex(DESCRIPTOR),
        "fence": FENCE,
        "issue": PRODUCT,
        "behind": "",
        "commit": COMMIT,
        "before_wait": "",
        "wait": WAIT,
        "store": STORE,
    }
    return BODY.format(**{**parts, **changes})


def execute(
    text: str, threads: int = 128, schedule: str = "random", seed: int = 0, arch: str = "sm_90a"
) -> np.ndarray:
    out, _ = run(text, out_words=1024, threads=threads, schedule=schedule, seed=seed, arch=arch)
    return out.view(np.float32)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_product(schedule: str) -> None:
    assert (execute(body(), schedule=schedule) == 2 + 16 * 3).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_products_add_up_without_a_fence_between(schedule: str) -> None:
    twice = execute(body(behind=f"{COMMIT} {PRODUCT}"), schedule=schedule)
    assert (twice == 2 + 2 * 16 * 3).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_results_that_were_waited_for_may_go_on(schedule: str) -> None:
    more = f"{COMMIT} {WAIT} {PRODUCT}"
    assert (execute(body(behind=more), schedule=schedule) == 2 + 2 * 16 * 3).all()


CHANGES = [
    ({"fence": ""}, "race", "no wgmma.fence"),
    ({"behind": f"{COMMIT} {WAIT} add.f32 %r30, %r30, %r31; {PRODUCT}"}, "race", "no wgmma.fence"),
    ({"behind": f"{COMMIT} mov.b32 %r20, 0; {WAIT}"}, "race", "a register of A changed"),
    ({"behind": f"{COMMIT} mov.b32 %r31, 0; {WAIT}"}, "race", "a register of D changed"),
    ({"before_wait": "add.f32 %r40, %r30, %r31;"}, "missing-wait", "no wgmma.wait_group"),
    ({"wait": ""}, "missing-wait", "no wgmma.wait_group"),
    ({"wait": WAIT.replace("0;", "1;")}, "missing-wait", "no wgmma.wait_group"),
    ({"commit": ""}, "missing-wait", "no wgmma.wait_group"),
    ({"wait": "", "store": ""}, "unfinished", "wait_group 0"),
    ({"proxy_fence": ""}, "missing-proxy-fence", "fence.proxy.async"),
    ({"behind": "st.shared.b32 [%r11], %r10;"}, "race", "is not ordered after the read"),
    ({"behind": NARROW}, "missing-wait", "no wgmma of this shape"),
    ({"initialise": ""}, "uninitialised", "%r30"),
    ({"descriptor": hex(DESCRIPTOR | 1 << 14)}, "descriptor", "bits 14-15"),
    (
        {"issue": "setp.lt.u32 %p1, %r0, 32; @%p1 add.u64 %d10, %d10, 1; " + PRODUCT},
        "divergence",
        "warpgroup",
    ),
    ({"issue": "setp.ne.u32 %p1, %r0, 5; @%p1 " + PRODUCT}, "divergence", "aligned"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), CHANGES, ids=[str(c[0])[:60] for c in CHANGES])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_a_broken_product_is_called(
    changes: dict[str, str], kind: str, message: str, schedule: str
) -> None:
    with pytest.raises(EmulationError, match=message) as caught:
        execute(body(**changes), schedule=schedule)
    assert caught.value.kind == kind


def test_it_needs_a_whole_warpgroup_of_sm_90() -> None:
    with pytest.raises(EmulationError, match="in no whole warpgroup"):
        execute(body(), threads=96)
    with pytest.raises(EmulationError, match="sm_90a alone"):
        execute(body(), arch="sm_100a")


@pytest.mark.parametrize(
    "text",
    [
        "m64n12k16.f32.bf16.bf16",
        "m64n16k32.f32.bf16.bf16",
        "m64n16k16.f16.bf16.bf16",
        "m64n16k16.f32.f16.bf16",
        "m64n40k32.s32.s8.s8",
        "m64n16k16.satfinite.f32.f16.f16",
        "sp.m64n16k32.f32.f16.f16",
    ],
)
def test_forms_that_do_not_exist(text: str) -> None:
    with pytest.raises(UnsupportedForm):
        form(("mma_async", "sync", "aligned", *text.split(".")))


@pytest.mark.parametrize("bits", [1 << 15, 1 << 31, 1 << 47, 1 << 55])
def test_bits_of_a_descriptor_that_must_be_0(bits: int) -> None:
    with pytest.raises(DescriptorError):
        decode_descriptor(DESCRIPTOR | bits)


# A K-major and not swizzled, 64 rows of 32 bytes at 512: two blocks of 128 bytes hold 8 rows. Each thread of warp w
# fills 16 bytes, half a row of the warp's. B as above.
A_IN_SHARED = (
    "shl.b32 %r13, %r0, 4; add.u32 %r13, %r13, %r1; mov.u32 %r14, 0x3f803f80; "
    "st.shared.v4.b32 [%r13+512], {%r14, %r14, %r14, %r14}; fence.proxy.async; bar.sync 0;"
)
PRODUCT_OF_SHARED = (
    f"add.u32 %r15, %r1, 512; shr.u32 %r15, %r15, 4; cvt.u64.u32 %d11, %r15; or.b64 %d11, %d11, {hex(DESCRIPTOR)};"
    "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%r30, %r31, %r32, %r33, %r34, %r35, %r36, %r37}, "
    "%d11, %d10, %p0, 1, 1, 0, 0;"
)
OVERWRITE = {  # behind the wait: its own half row of A, the half row of the next warp, a word of B
    "own rows of A": "st.shared.b32 [%r13+512], %r10;",
    "rows of A of another warp": "add.u32 %r16, %r0, 32; and.b32 %r16, %r16, 127; shl.b32 %r16, %r16, 4; "
    "add.u32 %r16, %r16, %r1; st.shared.b32 [%r16+512], %r10;",
    "B": "st.shared.b32 [%r11], %r10;",
}


@pytest.mark.parametrize("what", OVERWRITE)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_wait_frees_what_the_own_part_of_the_product_reads(schedule: str, what: str) -> None:
    changes = {
        "initialise": f"{A_IN_SHARED} {ZEROS}",
        "issue": PRODUCT_OF_SHARED,
        "wait": f"{WAIT} mov.u32 %r10, 0x7fc07fc0; {{}} {OVERWRITE[what]}",
    }
    ordered = {**changes, "wait": changes["wait"].format("bar.sync 0;")}
    assert (execute(body(**ordered), schedule=schedule) == 2 + 16 * 3).all()
    hasty = body(**{**changes, "wait": changes["wait"].format("")})
    if what.startswith("own"):
        assert (execute(hasty, schedule=schedule) == 2 + 16 * 3).all()
        return
    with pytest.raises(
        EmulationError, match=r"is not ordered after the (read|write) of it by warp"
    ) as caught:
        execute(hasty, schedule=schedule)
    assert caught.value.kind == "race"
    out, report = run(
        hasty, out_words=1024, threads=128, schedule=schedule, arch="sm_90a", tolerate=("wgmma",)
    )
    assert (out.view(np.float32) == 2 + 16 * 3).all()
    assert any("behind its own wgmma.wait_group (tolerated)" in warning for warning in report.warnings)
