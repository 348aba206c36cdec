"""tcgen05.ld, st and cp: their cells against the DSL's copy atoms and CUTLASS' traits, and round trips."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cute_kernels.emulator import tmem_access
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.umma_descriptors import MatrixDescriptor, Swizzle, UnsupportedForm
from tests.instructions.dsl_oracle import cute, cutlass, offsets, traced
from tests.instructions.kernels import SCHEDULES, run

tcgen05 = pytest.importorskip("cutlass.cute.nvgpu.tcgen05")

SHAPES = {"32x32b": 1, "16x32bx2": 1, "16x64b": 1, "16x128b": 2, "16x256b": 4}  # registers of .x1
FORMS = [
    (shape, 1 << i, packed)
    for shape, registers in SHAPES.items()
    for i in range(8)
    for packed in (False, True)
    if registers << i <= 128
]


@pytest.fixture(scope="module")
def atom_layouts() -> dict[tuple[Any, ...], Any]:
    """(shape, stride) of the DSL's maps (thread, value) -> index of a value in lane-major order, for all
    forms."""

    def body() -> dict[tuple[Any, ...], Any]:
        found = {}
        for shape, num, packed in FORMS:
            repetition = getattr(tcgen05.Repetition, f"x{num}")
            # Packed registers hold two 16-bit values, so count in those.
            element = cutlass.Float16 if packed else cutlass.Float32
            pack = tcgen05.Pack.PACK_16b_IN_32b if packed else tcgen05.Pack.NONE
            unpack = tcgen05.Unpack.UNPACK_32b_IN_16b if packed else tcgen05.Unpack.NONE
            load = cute.make_copy_atom(getattr(tcgen05, f"Ld{shape}Op")(repetition, pack), element)
            store = cute.make_copy_atom(getattr(tcgen05, f"St{shape}Op")(repetition, unpack), element)
            for is_store, layout in ((False, load.layout_dst_tv), (True, store.layout_src_tv)):
                found[shape, num, packed, is_store] = layout.shape, layout.stride
        return found

    return traced(body)


@pytest.mark.parametrize("store", [False, True], ids=["ld", "st"])
@pytest.mark.parametrize(("shape", "num", "packed"), FORMS)
def test_cells_agree_with_the_copy_atom(
    shape: str, num: int, packed: bool, store: bool, atom_layouts: Any
) -> None:
    (threads, values), (thread_stride, value_stride) = atom_layouts[shape, num, packed, store]
    index = offsets(threads, thread_stride)[:, None] + offsets(values, value_stride)[None, :]
    registers = SHAPES[shape] * num
    # An index counts through the values of lane 0, then of lane 1; a 16-bit value is a cell of its own.
    lanes_touched = 32 if shape == "32x32b" else 16
    width = index.size // lanes_touched
    wanted_lanes, wanted_columns = index // width, index % width
    half_split = num * (2 if packed else 1)  # where CUTLASS puts the second half of 16x32bx2
    at = tmem_access.register_map(shape, num, packed, half_split if shape == "16x32bx2" else 0)
    assert at.lanes.shape == at.columns.shape == (registers, 32)
    if packed:
        np.testing.assert_array_equal(at.lanes.T, wanted_lanes[:, ::2])
        np.testing.assert_array_equal(at.lanes.T, wanted_lanes[:, 1::2])
        np.testing.assert_array_equal(at.columns.T, wanted_columns[:, ::2])
        np.testing.assert_array_equal(at.columns.T + 1, wanted_columns[:, 1::2])
    else:
        np.testing.assert_array_equal(at.lanes.T, wanted_lanes)
        np.testing.assert_array_equal(at.columns.T, wanted_columns)


@pytest.mark.parametrize(("shape", "num", "packed"), [f for f in FORMS if f[1] in (1, 4)])
def test_store_then_load(shape: str, num: int, packed: bool) -> None:
    random = np.random.default_rng(0)
    words = np.full((128, 512), 0xDEADBEEF, np.uint32)
    at = tmem_access.register_map(shape, num, packed, 40)
    values = random.integers(0, 1 << 32, at.lanes.shape, dtype=np.uint32)
    tmem_access.store(words, at, 32, 100, values)
    np.testing.assert_array_equal(tmem_access.load(words, at, 32, 100), values)
    cells = values.size * (2 if packed else 1)
    assert (words != 0xDEADBEEF).sum() == cells
    touched = np.argwhere(words != 0xDEADBEEF)
    assert touched[:, 0].min() == 32
    assert touched[:, 1].min() == 100


def test_packed_load_takes_low_halves() -> None:
    words = np.arange(128 * 512, dtype=np.uint32).reshape(128, 512) | np.uint32(0xAB000000)
    registers = tmem_access.load(words, tmem_access.register_map("32x32b", 2, True), 64, 8)
    for thread in (0, 31):
        low = [int(words[64 + thread, 8 + c]) & 0xFFFF for c in range(4)]
        assert registers[:, thread].tolist() == [low[0] | low[1] << 16, low[2] | low[3] << 16]


@pytest.mark.parametrize(
    ("shape", "lane", "warp", "start"),
    [
        ("32x32b", 32, 5, 32),
        ("32x32b", 0, 5, 32),
        ("32x32b", 32, 4, None),
        ("32x32b", 48, 1, None),
        ("16x64b", 48, 1, 48),
        ("16x256b", 16, 3, 112),
        ("16x256b", 64, 1, None),
        ("16x128b", 104, 3, None),
    ],
)
def test_warps_reach_their_quarter_alone(shape: str, lane: int, warp: int, start: int | None) -> None:
    if start is not None:
        assert tmem_access.warp_lane(shape, lane, warp) == start
        return
    with pytest.raises(EmulationError, match=f"at lane {lane} by warp {warp}"):
        tmem_access.warp_lane(shape, lane, warp)


@pytest.mark.parametrize(("shape", "num"), [("16x256b", 64), ("16x128b", 128), ("32x32b", 3), ("64x32b", 1)])
def test_unknown_register_shapes(shape: str, num: int) -> None:
    with pytest.raises(UnsupportedForm):
        tmem_access.register_map(shape, num)


# CUTLASS' Copy_Traits<SM100_UTCCP_...>: ValID maps logical bits to tensor memory (a lane is 1 << 21 bits),
# SrcLayout maps the same logical bits from the order (row, bit of the row, copy) of the source. As (shape,
# stride).
LANE = 1 << 21
TRAITS: dict[tuple[str, str], tuple[Any, Any, int]] = {
    ("128x256b", ""): (((128, 256), (LANE, 1)), ((32768,), (1,)), 128),
    ("128x128b", ""): (((128, 128), (LANE, 1)), ((16384,), (1,)), 128),
    ("4x256b", ""): (((128, 256), (LANE, 1)), ((4, 256), (32, 128)), 4),
    ("32x128b", "warpx4"): (((32, 128, 4), (LANE, 1, 32 * LANE)), ((32, 128, 4), (1, 32, 4096)), 32),
    ("64x128b", "warpx2::02_13"): (((64, 128, 2), (LANE, 1, 64 * LANE)), ((64, 128, 2), (1, 64, 8192)), 64),
    ("64x128b", "warpx2::01_23"): (
        # Rows 32 to 63 are the third mode, the copies the fourth.
        ((32, 128, 2, 2), (LANE, 1, 64 * LANE, 32 * LANE)),
        ((32, 2, 128, 2), (1, 4096, 32, 8192)),
        64,
    ),
}


@pytest.mark.parametrize(("shape", "multicast"), TRAITS)
def test_copy_destinations_agree_with_the_traits(shape: str, multicast: str) -> None:
    value_id, source, rows = TRAITS[shape, multicast]
    cells = offsets(*value_id)[offsets(*source)]  # in the order (row, bit, copy)
    bits = int(shape.split("x")[1][:-1])
    cells = cells.reshape(-1, bits, rows)[:, ::32].transpose(0, 2, 1)  # [copy, row, word]
    plan = tmem_access.copy_plan(shape, multicast)
    assert (plan.rows, plan.columns) == (rows, bits // 32)
    got = plan.lanes[:, :, None] * LANE + np.arange(plan.columns) * 32
    np.testing.assert_array_equal(got, cells)


def test_source_rows_of_a_copy() -> None:
    """A scale factor atom: 32 rows of 16 bytes, 8 rows a core matrix, core matrices 128 bytes apart."""
    plan = tmem_access.copy_plan("32x128b", "warpx4")
    chunks = tmem_access.copy_chunks(plan, MatrixDescriptor(512, 16, 128, Swizzle.NONE))
    np.testing.assert_array_equal(chunks, 512 + 16 * np.arange(32)[:, None])
    wide = tmem_access.copy_chunks(
        tmem_access.copy_plan("128x256b"), MatrixDescriptor(0, 4096, 256, Swizzle.NONE)
    )
    row = np.arange(128)
    np.testing.assert_array_equal(wide[:, 0], row % 8 * 16 + row // 8 * 256)
    np.testing.assert_array_equal(wide[:, 1], wide[:, 0] + 4096)


def test_words_of_a_copy() -> None:
    data = np.random.default_rng(1).integers(0, 256, (32, 16), dtype=np.uint8)
    words = tmem_access.copy_words(tmem_access.copy_plan("32x128b", "warpx4"), data)
    np.testing.assert_array_equal(words.view(np.uint8), data)


@pytest.mark.parametrize(("source", "bits", "shift"), [("b4x16_p64", 4, 2), ("b6x16_p32", 6, 1)])
def test_decompression(source: str, bits: int, shift: int) -> None:
    """Each code ends in the middle of a byte; the padding of the source does not matter."""
    random = np.random.default_rng(2)
    codes = random.integers(0, 1 << bits, (128, 32), dtype=np.uint8)
    packed = random.integers(0, 256, (128, 2, 16), dtype=np.uint8)
    stream = np.unpackbits(codes.reshape(128, 2, 16, 1), axis=-1, count=bits, bitorder="little")
    packed[:, :, : 2 * bits] = np.packbits(stream.reshape(128, 2, -1), axis=-1, bitorder="little")
    plan = tmem_access.copy_plan("128x256b", "", source)
    assert plan.chunk_bytes == 2 * bits
    words = tmem_access.copy_words(plan, packed.reshape(128, 32))
    np.testing.assert_array_equal(words.view(np.uint8), codes << shift)


@pytest.mark.parametrize(
    ("shape", "multicast", "source"),
    [("32x128b", "", ""), ("64x128b", "warpx4", ""), ("128x128b", "warpx4", ""), ("128x256b", "", "b8x16")],
)
def test_unknown_copies(shape: str, multicast: str, source: str) -> None:
    with pytest.raises(UnsupportedForm):
        tmem_access.copy_plan(shape, multicast, source)


def test_copy_lanes() -> None:
    tmem_access.check_copy_lane("4x256b", 28)
    for shape, lane in (("4x256b", 32), ("32x128b", 32), ("128x256b", 16)):
        with pytest.raises(EmulationError, match=f"lane {lane}"):
            tmem_access.check_copy_lane(shape, lane)


def cells(plan: tmem_access.CopyPlan) -> npt.NDArray[np.int64]:
    return np.sort(plan.lanes.reshape(-1))


@pytest.mark.parametrize("form", [f for f in TRAITS if f[0] != "4x256b"])
def test_copies_fill_every_lane_once(form: tuple[str, str]) -> None:
    np.testing.assert_array_equal(cells(tmem_access.copy_plan(*form)), np.arange(128))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("late", [False, True])
def test_a_pair_allocates_together(late: bool, schedule: str) -> None:
    """The first CTA goes on when the second one has allocated too; late: which that one does when it is told to."""
    alloc = "tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%r1+64], 32;"
    body = f"""
    mov.u32 %r10, %cluster_ctarank;
    setp.eq.u32 %p0, %r0, 0;
    setp.eq.u32 %p1, %r10, 1;
    @%p0 mbarrier.init.shared.b64 [%r1], 1;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    @%p1 bra SECOND;
    {alloc}
    mapa.shared::cluster.u32 %r5, %r1, 1;
    @%p0 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r5];
    bra END;
SECOND:
    {"" if late else alloc}
AGAIN:
    mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p3, [%r1], 0;
    @!%p3 bra AGAIN;
    {alloc if late else ""}
END:
    bar.warp.sync -1;
    ld.shared.u32 %r6, [%r1+64];
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    tcgen05.dealloc.cta_group::2.sync.aligned.b32 %r6, 32;
    """
    if late:
        with pytest.raises(EmulationError, match="the other CTA of its pair") as caught:
            run(body, grid=2, cluster=2, schedule=schedule)
        assert caught.value.kind == "deadlock"
    else:
        run(body, grid=2, cluster=2, schedule=schedule)
