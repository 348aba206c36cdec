# ruff: noqa: E501 (lines of PTX)
"""Spellings that compilers emit: fences, waits, named barriers, prefetches, a tensor load into the CTA's own memory."""

from __future__ import annotations

from collections.abc import Iterator

from .copies import BARRIER, FILL, INIT
from .kernel import Case
from .warps import put

FENCES = (
    *(f"fence.{s}.{scope}" for s in ("acq_rel", "sc") for scope in ("cta", "cluster", "gpu", "sys")),
    *(f"membar.{scope}" for scope in ("cta", "gl", "sys")),
    *(f"fence.proxy.async{space}" for space in ("", ".shared::cta", ".shared::cluster", ".global")),
    "fence.mbarrier_init.release.cluster",
)
MEETINGS: tuple[str, ...] = (
    "bar.sync 0",
    "bar.sync 1, 64",
    "barrier.sync 2",
    "barrier.sync 3, 64",
    "barrier.cta.sync 4",
)
MEETINGS += ("bar.cta.sync 5, 64", "barrier.sync.aligned 6", "barrier.cta.sync.aligned 7, 64")


def meetings() -> Iterator[Case]:
    """Each thread passes a word to its neighbour in the other warp across every kind of barrier and fence."""
    body = "    shl.b32 %r5, %r0, 2;\n    add.u32 %r6, %r1, %r5;\n    xor.b32 %r7, %r5, 128;\n    add.u32 %r8, %r1, %r7;\n"
    body += "    ld.global.b32 %r10, [%d4];\n"
    n = 0
    for i, fence in enumerate(FENCES):
        body += f"    st.shared.b32 [%r6], %r10;\n    {fence};\n    {MEETINGS[i % len(MEETINGS)]};\n"
        body += f"    ld.shared.b32 %r10, [%r8];\n    add.u32 %r10, %r10, {i};\n    bar.sync 15;\n" + put(
            "%r10", n, 64
        )
        n += 1
    yield Case("fences and barriers", body, out_words=64 * n, threads=64)


def waits() -> Iterator[Case]:
    forms = (
        "try_wait.parity.acquire.cta.shared::cta.b64 %p1, [{0}], {1}",
        "try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [{0}], {1}",
        "try_wait.parity.shared::cta.b64 %p1, [{0}], {1}, 1000",
        "test_wait.parity.acquire.cta.shared::cta.b64 %p1, [{0}], {1}",
        "try_wait.parity.shared.b64 %p1, [{0}], {1}",
    )
    body = INIT
    at = f"%r1+{BARRIER}"
    for i, form in enumerate(forms):
        count = ("release.cta.shared::cta.b64 _", "shared.b64 _", "release.cluster.shared::cta.b64 _")[i % 3]
        body += f"    @!%p0 mbarrier.arrive.{count}, [{at}];\nWAIT{i}:\n"
        body += f"    mbarrier.{form.format(at, i % 2)};\n    @!%p1 bra WAIT{i};\n"
        body += (
            f"    mbarrier.test_wait.parity.shared.b64 %p2, [{at}], {1 - i % 2};\n    selp.b32 %r10, 1, 0, %p2;\n"
            + put("%r10", i)
        )
    yield Case("mbarrier waits", body, out_words=32 * len(forms))


def hints() -> Iterator[Case]:
    body = "    griddepcontrol.wait;\n    prefetch.global.L2 [%d4];\n    prefetch.global.L1 [%d4];\n    nanosleep.u32 20;\n"
    body += (
        "    ld.global.b32 %r10, [%d4];\n    bra.uni ON;\nON:\n    griddepcontrol.launch_dependents;\n"
        + put("%r10", 0)
    )
    yield Case("hints", body, out_words=32)


def tensors() -> Iterator[Case]:
    """A box into the CTA's own memory, and bytes back by a bulk store of which the read is waited for first."""
    body = INIT + "    mov.b64 %d20, p_bytes;\n    cvta.param.u64 %d21, %d20;\n    @%p0 bra ISSUED;\n"
    body += "    prefetch.tensormap [%d21];\n    mov.b32 %r30, 4;\n    mov.b32 %r31, -2;\n"
    body += f"    mbarrier.arrive.expect_tx.shared.b64 _, [%r1+{BARRIER}], 512;\n"
    body += "    cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r1], [%d21, {%r30, %r31}], "
    body += f"[%r1+{BARRIER}];\nISSUED:\n"
    body += f"WAIT:\n    mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p1, [%r1+{BARRIER}], 0;\n    @!%p1 bra WAIT;\n"
    body += "    @%p0 bra DONE;\n    cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 512;\n"
    body += "    cp.async.bulk.commit_group;\n    cp.async.bulk.wait_group.read 0;\n"
    body += f"    mov.b32 %r50, {FILL:#x};\n    st.shared.b32 [%r1], %r50;\n    cp.async.bulk.wait_group 0;\nDONE:\n"
    spec = (2, 2, 0, (32, 30), (128,), (16, 8), (1, 1), 0, 2, 0, 0)
    yield Case("tensor load into the CTA", body, out_words=128, tensor_map=spec)


def predicates() -> Iterator[Case]:
    """Every pair of truth values in the lanes, through every operation on predicates."""
    body = "    and.b32 %r5, %r3, 1;\n    and.b32 %r6, %r3, 2;\n    setp.ne.s32 %p1, %r5, 0;\n    setp.ne.b32 %p2, %r6, 0;\n"
    n = 0
    for operation in ("and", "or", "xor"):
        body += f"    {operation}.pred %p3, %p1, %p2;\n    selp.b32 %r10, 1, 0, %p3;\n" + put("%r10", n)
        body += f"    setp.lt.{operation}.u32 %p4|%p5, %r3, 13, !%p2;\n    selp.b32 %r10, 1, 0, %p4;\n" + put(
            "%r10", n + 1
        )
        body += "    selp.b32 %r10, 1, 0, %p5;\n" + put("%r10", n + 2)
        n += 3
    body += "    not.pred %p3, %p1;\n    mov.pred %p4, %p2;\n    selp.b32 %r10, 1, 0, %p3;\n    selp.b32 %r11, 1, 0, %p4;\n"
    yield Case("predicates", body + put("%r10", n) + put("%r11", n + 1), out_words=32 * (n + 2))


def cases() -> Iterator[Case]:
    for make in (meetings, waits, hints, tensors, predicates):
        yield from make()
