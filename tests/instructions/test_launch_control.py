"""clusterlaunchcontrol (sm_100): every CTA runs or is cancelled for another, and what is undefined is refused.

Witnesses: the rules of the PTX ISA ("clusterlaunchcontrol.try_cancel", "clusterlaunchcontrol.query_cancel"), as kernels
written by hand; and the DSL's own lowering of requests and queries, in a kernel that it compiles.
"""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from numpy.typing import NDArray

from cute_kernels.emulator import Device, EmulationError
from tests.instructions.dsl_oracle import cute, cutlass
from tests.instructions.kernels import SCHEDULES, run

SETUP = """
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r10, %ctaid.x;
    mov.b32 %r9, 0;                    // parity of the response's barrier
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra READY;
    mbarrier.init.shared.b64 [%r1+64], 1;
    fence.mbarrier_init.release.cluster;
READY:
    bar.sync 0;
"""
# The CTA's number is in %r2 at first: what is added to out[4 * number] is 1, to the next word whose work it was.
WORK = """
WORK:
    @%p0 bra DONE;
    mul.wide.u32 %d5, %r2, 16;
    add.s64 %d5, %d0, %d5;
    atom.global.add.u32 %r3, [%d5], 1;
    add.u32 %r4, %r10, 1;
    st.global.u32 [%d5+4], %r4;
"""
REQUEST = """
    mbarrier.arrive.expect_tx.shared.b64 _, [%r1+64], {bytes};
    clusterlaunchcontrol.try_cancel.async{space}.mbarrier::complete_tx::bytes.b128 [{to}], [{bar}];
"""
WAIT = """
AGAIN:
    mbarrier.try_wait.parity.shared.b64 %p1, [%r1+64], %r9;
    @!%p1 bra AGAIN;
    xor.b32 %r9, %r9, 1;
"""
QUERY = """
    .reg .b128 %response;
    {load}
    clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 %p2, %response;
    @!%p2 bra DONE;
    {first}
    {fence}
    bra WORK;
DONE:
"""
WIDE_LOAD = "ld.shared.b128 %response, [%r1];"
PAIR_LOAD = "ld.shared.v2.b64 {%d8, %d9}, [%r1];\n    mov.b128 %response, {%d8, %d9};"
FIRST_X = "clusterlaunchcontrol.query_cancel.get_first_ctaid::x.b32.b128 %r2, %response;"
FIRST = "clusterlaunchcontrol.query_cancel.get_first_ctaid.v4.b32.b128 {%r2, %r6, %r7, _}, %response;"
FENCE = "fence.proxy.async.shared::cta;"


def request(space: str = ".shared::cta", to: str = "%r1", bar: str = "%r1+64", nbytes: int = 16) -> str:
    return REQUEST.format(space=space, to=to, bar=bar, bytes=nbytes)


def query(load: str = WIDE_LOAD, first: str = FIRST_X, fence: str = FENCE) -> str:
    return QUERY.format(load=load, first=first, fence=fence)


def grid(
    body: str,
    ctas: int = 12,
    schedule: str = "random",
    seed: int = 0,
    sms: int = 2,
    tolerate: tuple[str, ...] = (),
) -> tuple[NDArray[np.uint32], list[str]]:
    """Out, a row of four words for each CTA, and the warnings."""
    out, report = run(
        SETUP + body,
        out_words=4 * ctas,
        grid=ctas,
        schedule=schedule,
        seed=seed,
        num_sms=sms,
        tolerate=tolerate,
    )
    return out.reshape(ctas, 4) - np.uint32(0xFBFBFBFB), report.warnings


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("load", [WIDE_LOAD, PAIR_LOAD])
@pytest.mark.parametrize("first", [FIRST_X, FIRST])
def test_every_cta_runs_once_or_is_cancelled_once(schedule: str, load: str, first: str) -> None:
    for seed in range(4 if schedule == "random" else 1):
        out, warnings = grid(WORK + request() + WAIT + query(load, first), schedule=schedule, seed=seed)
        assert (out[:, 0] == 1).all()
        assert warnings == []
        by = out[:, 1] + np.uint32(0xFBFBFBFB) - 1  # who did each one's work
        own = by == np.arange(12)
        assert own[:2].all()  # started at once
        assert (own[by]).all()  # nobody who was cancelled did any
        if schedule == "eager":
            assert own.sum() == 2
        else:
            assert 2 < own.sum() < 12  # requests fail while clusters wait
        if schedule != "random":
            break


def test_nothing_is_left_to_cancel() -> None:
    out, _ = grid(WORK + request() + WAIT + query(), ctas=3, sms=3)
    assert (out[:, 0] == 1).all()
    assert (out[:, 1] + np.uint32(0xFBFBFBFB) - 1 == np.arange(3)).all()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (WORK + request() + query(), "missing-wait"),
        (WORK + request(nbytes=32) + WAIT + query(), "deadlock"),
        (WORK + request(nbytes=8) + WAIT + query(), "deadlock|transaction-count|barrier"),
        (WORK + request(to="%r1+8") + WAIT + query(), "misaligned"),
        (WORK + request(bar="%r1+72") + WAIT + query(), "barrier"),
        (WORK + request(to="%r1+64") + WAIT + query(), "barrier"),
        (WORK + request() + WAIT + query().replace("@!%p2 bra DONE;", ""), "launch-control"),
        (WORK + request() + WAIT + query().replace("@!%p2 bra", "bra WORK; bra"), "launch-control"),
        ("    @%p0 bra DONE;\n    st.shared.v4.u32 [%r1], {%r0, %r0, %r0, %r0};\n" + query().replace("bra WORK;", ""),
         "launch-control"),
        ("    @%p0 bra DONE;\n" + request() + query().replace("bra WORK;", ""), "missing-wait"),
    ],
)  # fmt: skip
def test_misuse_is_refused(body: str, kind: str) -> None:
    for schedule in SCHEDULES:
        with pytest.raises(EmulationError) as fault:
            grid(body, schedule=schedule)
        assert fault.value.kind in kind.split("|"), fault.value


def test_a_response_is_overwritten_behind_a_fence() -> None:
    _, warnings = grid(WORK + request() + WAIT + query(fence=""), schedule="eager")
    assert "no fence.proxy.async between" in warnings[0]


def test_a_query_ahead_of_the_branch_can_be_tolerated() -> None:
    ahead = query().replace("@!%p2 bra DONE;", FIRST_X.replace("%r2", "%r8") + "\n    @!%p2 bra DONE;")
    with pytest.raises(EmulationError, match="guard it with is_canceled"):
        grid(WORK + request() + WAIT + ahead)
    out, warnings = grid(WORK + request() + WAIT + ahead, tolerate=("clusterlaunchcontrol",))
    assert (out[:, 0] == 1).all()
    assert all("of a request that failed (tolerated)" in warning for warning in warnings)


def test_launch_control_begins_with_sm_100() -> None:
    with pytest.raises(EmulationError, match="from sm_100 on"):
        run(SETUP + "    @%p0 bra DONE;\n" + request() + "DONE:\n", arch="sm_90a")


def test_a_response_says_nothing_by_itself() -> None:
    """Its words are none of the CTA's numbers."""
    body = WORK + request() + WAIT + "    ld.shared.u32 %r5, [%r1];\n    st.global.u32 [%d5+8], %r5;\nDONE:\n"
    out, _ = run(SETUP + body, out_words=48, grid=12, schedule="eager", num_sms=1)
    assert out.reshape(12, 4)[0, 2] > 12


CLUSTER = """
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r10, %cluster_ctarank;
    mov.b32 %r9, 0;
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra READY;
    mbarrier.init.shared.b64 [%r1+64], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r1+64], 16;
READY:
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    @%p0 bra DONE;
    mul.wide.u32 %d5, %r2, 16;
    add.s64 %d5, %d0, %d5;
    st.global.u32 [%d5], 1;
    setp.ne.u32 %p3, %r10, 0;
    @%p3 bra AGAIN;
    clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes{multicast}.b128 [%r1], [%r1+64];
"""
TWICE = """
    .reg .b128 %response;
    ld.shared.b128 %response, [%r1];
    clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 %p2, %response;
    @!%p2 bra DONE;
    clusterlaunchcontrol.query_cancel.get_first_ctaid::x.b32.b128 %r2, %response;
    add.u32 %r2, %r2, %r10;
    mul.wide.u32 %d5, %r2, 16;
    add.s64 %d5, %d0, %d5;
    st.global.u32 [%d5], 2;
DONE:
    bar.warp.sync 0xffffffff;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_response_for_a_whole_cluster(schedule: str) -> None:
    """Each CTA of the cluster does the work of its like in the cancelled one."""
    body = CLUSTER.format(multicast=".multicast::cluster::all") + WAIT + TWICE
    out, report = run(body, out_words=64, grid=16, cluster=2, schedule=schedule, seed=1, num_sms=4)
    work = out.reshape(8, 2, 4)[:, :, 0]
    assert (work[:, 0] == work[:, 1]).all()
    assert set(work[:, 0].tolist()) == {1, 2}
    assert report.warnings == []


def test_a_response_for_one_cta_alone() -> None:
    body = CLUSTER.format(multicast="") + WAIT + TWICE
    with pytest.raises(EmulationError, match="deadlock"):
        run(body, out_words=64, grid=16, cluster=2, schedule="eager", num_sms=4)


def test_the_dsl_asks_and_queries() -> None:
    """A kernel of the DSL's own requests and queries, which its compiler moves ahead of the branch."""
    prims = pytest.importorskip("cutlass.experimental.primitives")
    ring = pytest.importorskip("cute_kernels.device.ring")
    runtime = pytest.importorskip("cutlass.cute.runtime")
    tma = pytest.importorskip("cute_kernels.device.tma")
    ctas = 9

    @cute.kernel
    def steal(out: cutlass.Pointer) -> None:
        response = cutlass.Array(cutlass.Int32, 4, space=cutlass.AddressSpace.smem, alignment=16)
        barrier = cutlass.Array(cutlass.Int64, 1, space=cutlass.AddressSpace.smem, alignment=8)
        wide = cutlass.Array(response.data_ptr(), dtype=cutlass.Int128)
        leader = prims.elect_sync()
        if leader:
            ring.init(barrier, 1, 1)
            prims.fence_mbarrier_init()
        cute.arch.sync_threads()
        place = ring.reader(1)
        number, left = cutlass.Int32(cute.arch.block_idx()[0]), cutlass.Boolean(True)
        while left:
            if leader:
                (out + number).store(cutlass.Int32(cute.arch.block_idx()[0]))
                prims.mbarrier_arrive_expect_tx(barrier, 16)
                prims.clusterlaunchcontrol_try_cancel(response, barrier)
            ring.wait(barrier, place.parity)
            place.advance()
            answer = wide[0]
            left = prims.clusterlaunchcontrol_query_cancel("is_canceled", answer)
            number = prims.clusterlaunchcontrol_query_cancel("get_first_cta_id_x", answer)
            tma.publish()
            cute.arch.sync_warp()

    @cute.jit
    def entry(out: cutlass.Pointer) -> None:
        steal(out).launch(grid=(ctas, 1, 1), block=(32, 1, 1))

    pointer = runtime.make_ptr(cutlass.Int32, 16, cute.AddressSpace.gmem)
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch sm_100a --keep-ptx --dump-dir={folder}"
        ptx = cute.compile(entry, pointer, options=options).__ptx__
    for schedule in SCHEDULES:
        out = np.full(ctas, -1, np.int32)
        device = Device("sm_100a", 2, schedule, seed=3, tolerate=("clusterlaunchcontrol",))
        device.register(out.ctypes.data, out.nbytes, "out")
        report = device.launch(ptx, None, (ctas, 1, 1), (32, 1, 1), dynamic_shared=1024, params=[
            out.ctypes.data.to_bytes(8, "little")
        ])  # fmt: skip
        assert (out >= 0).all()
        assert (out[out] == out).all()  # who did another's work did its own
        assert len(set(out.tolist())) < ctas
        assert all("(tolerated)" in warning for warning in report.warnings)
