"""The BF16 GEMM of SM100 as compiled: what its PTX says agrees with what Shape and Variant tell the host."""

from __future__ import annotations

import pytest

from cute_kernels.build.variant import Variant
from cute_kernels.device.umma_formats import Major
from cute_kernels.emulator.umma_descriptors import decode_instruction_descriptor
from sm100 import variants
from sm100.shape import Shape
from tests.compile.compiled import Compiled, box_bytes, compile_all

ARCH = "sm_100a"
VARIANTS = [v for v in variants(ARCH) if v.kernel == "gemm_bf16"]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=[v.name for v in VARIANTS])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """All variants by name."""
    return compile_all(tmp_path_factory.mktemp("cubins"), ARCH, "gemm_bf16")


def test_variants_cover_the_configurations() -> None:
    found = {
        (v.name.removeprefix("sm100_gemm_bf16_"), v.shape.a_major, v.shape.b_major, v.shape.tile_n)
        for v in VARIANTS
    }
    layouts = {"": ("k", "k"), "_nn": ("k", "mn"), "_tt": ("mn", "k"), "_tn": ("mn", "mn")}
    tiles = {"": (32, 64, 128, 256), "_nn": (64, 128, 256), "_tt": (128, 256), "_tn": (128, 256)}
    batched = {
        (f"128x{n}x64_{d}_batched{layout}", *layouts[layout], n)
        for layout in ("", "_nn", "_tn")
        for n in (128, 256)
        for d in ("bf16", "f32")
    }
    assert {v.name for v in VARIANTS if v.shape.batched} == {f"sm100_gemm_bf16_{b[0]}" for b in batched}
    k_grouped = {
        (f"{m}x256x64_f32_k_grouped{layout}_accumulate", *layouts[layout], 256)
        for m in (128, 256)
        for layout in ("", "_tn")
    }
    assert {v.name for v in VARIANTS if v.shape.k_grouped} == {f"sm100_gemm_bf16_{k[0]}" for k in k_grouped}
    pairs = {"": (128, 256), "_nn": (256,), "_tt": (256,), "_tn": (256,)}
    outputs = [(d, c) for d in ("bf16", "f32") for c in ("", "_accumulate")]
    split_k = {(f"128x64x64_{d}_split_k{c}", "k", "k", 64) for d, c in outputs}
    split_k.add(("128x32x64_bf16_swap_ab_split_k", "k", "k", 32))
    split_k.add(("256x128x64_bf16_split_k", "k", "k", 128))
    swapped = {(f"128x32x64_{d}_swap_ab{c}", "k", "k", 32) for d, c in outputs}
    grouped = {(f"128x128x64_bf16_by_{by}", "k", "k", 128) for by in ("indices", "sizes")}
    grouped.add(("128x128x64_bf16_by_indices_nn", "k", "mn", 128))
    grouped |= {(f"128x32x64_bf16_swap_ab_by_{by}", "k", "k", 32) for by in ("indices", "sizes")}
    grouped |= {(f"256x256x64_bf16_by_{by}", "k", "k", 256) for by in ("indices", "sizes")}
    assert {v.name for v in VARIANTS if v.shape.grouped} == {f"sm100_gemm_bf16_{g[0]}" for g in grouped}
    clc = {(f"{m}x{m}x64_{d}_clc", "k", "k", m) for m in (128, 256) for d in ("bf16", "f32")}
    assert found == batched | split_k | swapped | k_grouped | clc | grouped | {
        (f"{m}x{n}x64_{d}{layout}{c}", *layouts[layout], n)
        for m, widths in ((128, tiles), (256, pairs))
        for layout in layouts
        for n in widths[layout]
        for d in ("bf16", "f32")
        for c in ("", "_accumulate")
    }


@every_variant
def test_registers_hold_everything(compiled: dict[str, Compiled], variant: Variant) -> None:
    entry = compiled[variant.name].entry
    assert entry["spill_bytes"] == entry["local_bytes"] == 0
    assert entry["registers"] * variant.shape.threads <= 65536


@every_variant
def test_interface_is_what_the_variant_states(compiled: dict[str, Compiled], variant: Variant) -> None:
    kernel, s = compiled[variant.name].kernel, variant.shape
    assert [p.nbytes for p in kernel.params] == [p.nbytes for p in variant.params]
    names = [
        "map_a",
        "map_b",
        *["map_a_boxes"] * (s.a_tile.boxes > 1),
        *["map_b_boxes"] * (s.b_tile.boxes > 1),
    ]
    names += [*["map_c"] * s.loads_c, "map_d", "m", "n", "k"]
    names += ["batches", "ks"] * s.k_grouped
    names += ["a", "b", "map_slots"] * variant.shape.group_maps
    names += ["batches", "depth"] * variant.shape.batched
    names += ["slots", "flags", "share"] * variant.shape.split_k
    names += [*("layout", "groups", "alignment", "d", "row_stride", "matrix_stride")] * variant.shape.grouped
    assert [p.name for p in variant.params] == names
    assert kernel.reqntid == variant.block == (192 + 32 * variant.shape.clc, 1, 1)


@every_variant
def test_barriers_expect_their_arrivals(compiled: dict[str, Compiled], variant: Variant) -> None:
    c, s = compiled[variant.name], variant.shape
    inits = {c.offset(at): c.constant(at, 1) for at in c.all("mbarrier", "init")}
    # full, empty; acc_full, acc_empty; one of C for each staging buffer of four warps.
    # Both CTAs of a pair fill its first CTA's stages and empty its accumulators.
    # Before them, responses of which all warps but the last tell that they have read them.
    expected = [1] * s.clc_stages + [(s.warps - 1) * s.cta_group] * s.clc_stages
    expected += [s.cta_group] * s.stages + [1] * s.stages + [1] * 2 + [4 * s.cta_group] * 2
    expected += [1] * s.c_barriers
    assert [inits[offset] for offset in sorted(inits)] == expected
    assert max(inits) + 8 + 4 == variant.dynamic_shared == s.smem_bytes


@every_variant
def test_transaction_bytes_are_those_of_whole_boxes(compiled: dict[str, Compiled], variant: Variant) -> None:
    c, s = compiled[variant.name], variant.shape
    boxes = s.a_tile.boxes * box_bytes(variant, "map_a") + s.b_tile.boxes * box_bytes(variant, "map_b")
    assert boxes == (128 + s.tile_n // s.cta_group) * 128
    expected = {boxes, box_bytes(variant, "map_c")} if s.loads_c else {boxes}
    expected |= {16} if s.clc else set()
    assert {c.constant(at, 1 + 1) for at in c.all("mbarrier", "arrive", "expect_tx")} == expected


@every_variant
def test_tensor_memory_is_given_back(compiled: dict[str, Compiled], variant: Variant) -> None:
    c = compiled[variant.name]
    (alloc,), (dealloc,) = c.all("tcgen05", "alloc"), c.all("tcgen05", "dealloc")
    assert c.constant(alloc, 1) == c.constant(dealloc, 1) == 2 * variant.shape.tile_n


@every_variant
def test_multiply_loop(compiled: dict[str, Compiled], variant: Variant) -> None:
    c, s = compiled[variant.name], variant.shape
    products = c.all("tcgen05", "mma")
    loop = c.loop(products[0])
    # Behind the loop over whole K tiles, groups of rows of K have one for each number of MMAs that the last one has.
    rest = s.k_grouped and not s.group_maps
    assert [at in loop for at in products] == [True] * 4 + [False] * (1 + 2 + 3) * rest
    assert c.count(loop, "tcgen05", "commit") == c.count(loop, "mbarrier", "try_wait") == 1
    assert c.count(loop, "elect") == c.count(loop, "tcgen05", "mma") + 1  # and the commit
    for at in c.all("tcgen05", "commit"):
        name = c.kernel.instructions[at].modifiers
        assert f"cta_group::{s.cta_group}" in name
        assert ("multicast::cluster" in name) == (s.cta_group == 2)
    assert not any(c.count(loop, opcode) for opcode in ("div", "rem", "ld", "shfl"))
    for at in products:
        name = c.kernel.instructions[at].modifiers
        assert name[:3] == ("mma", f"cta_group::{s.cta_group}", "kind::f16")
        d = decode_instruction_descriptor(c.constant(at, 3), "f16", s.cta_group)
        assert (d.m, d.n, d.a_format, d.b_format, d.d_format) == (s.tile_m, s.tile_n, "bf16", "bf16", "f32")
        assert (d.transpose_a, d.transpose_b) == (s.a_major == "mn", s.b_major == "mn")


@every_variant
def test_load_loop(compiled: dict[str, Compiled], variant: Variant) -> None:
    c, s = compiled[variant.name], variant.shape
    target = "shared::cta" if s.cta_group == 1 else "shared::cluster"
    loads = c.all("cp", "async", "bulk", "tensor")
    loads = [at for at in loads if target in c.kernel.instructions[at].modifiers]
    loads = [at for at in loads if c.count(c.loop(at), "tcgen05", "ld") == 0]  # C comes elsewhere
    boxes = (2 if s.a_major == "mn" else 1) + (s.b_tile.rows // 64 if s.b_major == "mn" else 1)
    assert boxes == s.a_tile.boxes + s.b_tile.boxes
    # The loop over K tiles takes boxes of several blocks as one; behind it are those of the last K tile.
    in_loop = [at for at in loads if at in c.loop(loads[0])]
    assert len(in_loop) == 2
    assert len(loads) == 2 + boxes * (boxes > 2)
    maps = [spec for p in variant.params if (spec := p.tensor_map) and spec.blocks > 1]
    assert sum(spec.blocks - 1 for spec in maps) == boxes - 2
    assert c.count(c.loop(loads[0]), "mbarrier", "try_wait") == 1


@pytest.mark.parametrize(
    ("family", "tile_n", "majors", "message"),
    [
        ("bf16", 32, ("k", "mn"), "32 rows: not whole boxes"),
        ("mxf8", 64, ("k", "mn"), "64 rows: not whole boxes"),
        ("mxf4", 128, ("mn", "k"), "FP4 has to be K-major"),
        ("mxf8_mxf4", 128, ("k", "mn"), "FP4 has to be K-major"),
    ],
)
def test_shape_refuses(family: str, tile_n: int, majors: tuple[Major, Major], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        Shape(tile_n, 2, "f32", False, family, *majors)


@pytest.mark.parametrize("shape", [v.shape for v in VARIANTS], ids=[v.name for v in VARIANTS])
def test_fitting_leaves_no_room_for_a_stage(shape: Shape) -> None:
    assert shape.smem_bytes + shape.stage_bytes + 2 * 8 > 232_448
