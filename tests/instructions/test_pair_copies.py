"""Tensor copies with .cta_group::2 (sm_100): where the bytes land and which CTA of a pair is told.

Witnesses: the rules of the PTX ISA ("cp.async.bulk.tensor", .cta_group and .multicast::cluster), as kernels written
by hand and NumPy's picture of the boxes; and the DSL, whose lowering of such a copy names the even CTA's barrier by
clearing a bit of the address, and so says what a barrier's address in the other CTA is.
"""

from __future__ import annotations

import functools
import tempfile

import numpy as np
import pytest
from numpy.typing import NDArray

from cute_kernels.emulator import Device, EmulationError
from tests.instructions.dsl_oracle import cute, cutlass
from tests.instructions.kernels import SCHEDULES, run

pytest.importorskip("cutlass.experimental.cuda")
import cutlass.experimental.cuda as cuda

prims = pytest.importorskip("cutlass.experimental.primitives")
ring = pytest.importorskip("cute_kernels.device.ring")
tma = pytest.importorskip("cute_kernels.device.tma")

ROWS, COLUMNS = 8, 32  # of a box of 32-bit words: 1024 bytes
BOX = ROWS * COLUMNS * 4

# %r2 rank; %r3 the rank that is to be told of this CTA's copy; %p2: this CTA is told of none
PAIRS = """
    mov.u32 %r2, %cluster_ctarank;
    and.b32 %r3, %r2, -2;
    add.u32 %r3, %r3, {told};
    setp.ne.u32 %p0, %r0, 0;
    setp.ne.u32 %p2, %r2, %r3;
    @%p0 bra READY;
    mbarrier.init.shared.b64 [%r1], 1;
    fence.mbarrier_init.release.cluster;
    @%p2 bra READY;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r1], {expected};
READY:
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    @%p0 bra ISSUED;
    mov.b64 %d10, p_map;
    mapa.shared::cluster.u32 %r4, %r1, %r3;
    mapa.shared::cluster.u32 %r5, %r1, %r2;
    add.u32 %r5, %r5, 1024;
    {copy}
ISSUED:
    @%p2 bra DONE;
    AGAIN: mbarrier.try_wait.parity.shared.b64 %p1, [%r1], 0;
    @!%p1 bra AGAIN;
    and.b32 %r6, %r2, -2;              // who was told reads what came for both
    mov.b32 %r7, 0;
BOTH:
    mapa.shared::cluster.u32 %r8, %r1, %r6;
    mad.lo.u32 %r8, %r0, 4, %r8;
    ld.shared::cluster.u32 %r9, [%r8+1024];
    mad.lo.u32 %r10, %r6, 1024, 0;
    cvt.u64.u32 %d11, %r10;
    add.s64 %d11, %d11, %d3;
    st.global.u32 [%d11], %r9;
    add.u32 %r6, %r6, 1;
    add.u32 %r7, %r7, 1;
    setp.lt.u32 %p3, %r7, 2;
    @%p3 bra BOTH;
DONE:
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
"""
FORM = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
OWN_ROWS = (
    f"shl.b32 %r11, %r2, 3; sub.u32 %r11, %r11, 4; {FORM}.cta_group::2 [%r5], [%d10, {{0, %r11}}], [%r4];"
)


def tensor(words: NDArray[np.uint32]) -> bytes:
    """A tensor map over words[rows, 32] in boxes of 8 rows, not swizzled."""
    rows = len(words)
    return Device.encode_tensor_map("u32", words.ctypes.data, (COLUMNS, rows), (128,), (COLUMNS, ROWS))


def box(words: NDArray[np.uint32], row: int) -> NDArray[np.uint32]:
    """What a box from `row` on holds: zeros outside the tensor."""
    padded = np.pad(words, ((ROWS, ROWS), (0, 0)))
    return padded[row + ROWS : row + 2 * ROWS]


@pytest.fixture(scope="module")
def words() -> NDArray[np.uint32]:
    return np.random.default_rng(5).integers(0, 1 << 32, (26, COLUMNS), dtype=np.uint32)


@pytest.mark.parametrize("told", [0, 1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_either_cta_of_the_pair_is_told(words: NDArray[np.uint32], told: int, schedule: str) -> None:
    """Two pairs; every CTA copies its own rows, the first and the last with some outside the tensor."""
    body = PAIRS.format(told=told, expected=2 * BOX, copy=OWN_ROWS)
    out, report = run(
        body, words, 1024, 256, shared=2048, grid=4, cluster=4, schedule=schedule, tensor_map=tensor(words)
    )
    expected = np.stack([box(words, 8 * rank - 4) for rank in range(4)])
    assert (out.reshape(4, ROWS, COLUMNS) == expected).all()
    assert report.warnings == []


@pytest.mark.parametrize("told", [0, 1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_boxes_of_several_matrices(words: NDArray[np.uint32], told: int, schedule: str) -> None:
    """Two pairs, each of a matrix of its own, the second of which begins behind 13 rows."""
    matrices = words.reshape(2, 13, COLUMNS)
    tensor_map = Device.encode_tensor_map(
        "u32", words.ctypes.data, (COLUMNS, 13, 2), (128, 13 * 128), (COLUMNS, ROWS, 1)
    )
    copy = f"""and.b32 %r11, %r2, 1; shl.b32 %r11, %r11, 3; shr.u32 %r12, %r2, 1;
    {FORM.replace(".2d", ".3d")}.cta_group::2 [%r5], [%d10, {{0, %r11, %r12}}], [%r4];"""
    body = PAIRS.format(told=told, expected=2 * BOX, copy=copy)
    out, report = run(
        body, words, 1024, 256, shared=2048, grid=4, cluster=4, schedule=schedule, tensor_map=tensor_map
    )
    expected = np.stack([box(matrices[rank >> 1], 8 * (rank & 1)) for rank in range(4)])
    assert (out.reshape(4, ROWS, COLUMNS) == expected).all()
    assert report.warnings == []


@pytest.mark.parametrize("told", [0, 1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_multicast_tells_one_cta_of_each_pair(words: NDArray[np.uint32], told: int, schedule: str) -> None:
    """Rank 2 copies to all four; of each pair the one is told that is as even or odd as the barrier's own CTA."""
    copy = f"""setp.ne.u32 %p4, %r2, 2; @%p4 bra ISSUED; mov.b16 %h1, 15; mov.b32 %r11, 3;
    {FORM}.multicast::cluster.cta_group::2 [%r5], [%d10, {{0, %r11}}], [%r4], %h1;"""
    body = PAIRS.format(told=told, expected=2 * BOX, copy=copy)
    out, _ = run(
        body, words, 1024, 256, shared=2048, grid=4, cluster=4, schedule=schedule, tensor_map=tensor(words)
    )
    assert (out.reshape(4, ROWS, COLUMNS) == box(words, 3)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((".cta_group::2", ""), "writes CTA rank . and signals a barrier of rank"),
        ((".cta_group::2", ".cta_group::1"), "writes CTA rank . and signals a barrier of rank"),
        (("[%r4];", "[%r12];"), "writes CTA rank . and signals a barrier of rank"),  # of the other pair
    ],
)
def test_other_barriers_are_refused(words: NDArray[np.uint32], change: tuple[str, str], message: str) -> None:
    other_pair = "xor.b32 %r12, %r2, 2; mapa.shared::cluster.u32 %r12, %r1, %r12;"
    copy = other_pair + OWN_ROWS.replace(*change)
    assert copy != other_pair + OWN_ROWS
    body = PAIRS.format(told=0, expected=2 * BOX, copy=copy)
    with pytest.raises(EmulationError, match=message):
        run(body, words, 1024, 256, shared=2048, grid=4, cluster=4, tensor_map=tensor(words))


# --- the DSL ------------------------------------------------------------------------------------------------------


def shared(dtype: type, count: int) -> cutlass.Array:
    return cutlass.Array(dtype, count, space=cutlass.AddressSpace.smem, alignment=1024)


@cute.kernel
def kernel(source: cutlass.GridConstant[cuda.TensorMap], out: cutlass.Pointer) -> None:
    """A pair in which each CTA copies and names its own barrier, and the first one waits for the bytes of both."""
    data, barrier = shared(cutlass.Int32, ROWS * COLUMNS), shared(cutlass.Int64, 1)
    rank, thread = prims.cluster_ctarank(), cute.arch.thread_idx()[0]
    if thread == 0:
        prims.mbarrier_init(barrier, 1)
        prims.fence_mbarrier_init()
        if rank == 0:
            prims.mbarrier_arrive_expect_tx(barrier, 2 * BOX)
    prims.barrier_cluster_arrive()
    prims.barrier_cluster_wait()
    if thread == 0:
        prims.cp_async_bulk_tensor_shared_cluster_global(
            data, source.get_ptr(), (cutlass.Int32(0), rank * ROWS), barrier, [], group=prims.CTAGroup.CTA_2
        )
    if rank == 0:
        ring.wait(barrier, 0)
        (out + thread).store(data[thread])
    prims.barrier_cluster_arrive()
    prims.barrier_cluster_wait()


@cute.jit
def entry(out: cutlass.Pointer) -> None:
    kernel(tma.placeholder_map(), out).launch(grid=(2, 1, 1), block=(256, 1, 1), cluster=(2, 1, 1))


@functools.cache
def from_dsl() -> str:
    pointer = cute.runtime.make_ptr(cutlass.Int32, 1024, cute.AddressSpace.gmem, assumed_align=16)
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch sm_100a --keep-ptx --dump-dir={folder}"
        text: str = cute.compile(entry, pointer, options=options).__ptx__
    return text


def test_a_copy_of_the_dsl(words: NDArray[np.uint32]) -> None:
    out = np.zeros(256, np.uint32)
    device = Device("sm_100a", num_sms=2, schedule="random", seed=3)
    device.register(out.ctypes.data, out.nbytes, "out")
    device.register(words.ctypes.data, words.nbytes, "words")
    params = [tensor(words), out.ctypes.data.to_bytes(8, "little")]
    assert f"{FORM}.cta_group::2" in from_dsl()
    device.launch(from_dsl(), None, (2, 1, 1), (256, 1, 1), (2, 1, 1), 4096, params)
    assert (out.reshape(ROWS, COLUMNS) == box(words, 0)).all()
