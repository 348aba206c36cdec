"""The block-scaled GEMM of SM100 as compiled: what its PTX says agrees with what Shape and Variant tell the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cute_kernels.build.manifest import read
from cute_kernels.build.variant import Variant
from cute_kernels.emulator import ptx
from cute_kernels.emulator.umma_descriptors import decode_instruction_descriptor
from sm100 import variants
from sm100.shape import Shape
from tests.building import Request, build
from tests.compile.compiled import Compiled, box_bytes, compile_all

ARCH = "sm_100a"
VARIANTS = [v for v in variants(ARCH) if v.kernel == "gemm_blockscaled"]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=[v.name for v in VARIANTS])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """All variants by name."""
    return compile_all(tmp_path_factory.mktemp("cubins"), ARCH, "gemm_blockscaled")


def test_variants_cover_the_configurations() -> None:
    shapes = [
        (
            *(v.shape.family_dtype, v.shape.a_major, v.shape.b_major),
            *(v.shape.cta_group, v.shape.tile_n, v.shape.d_dtype, v.shape.accumulate),
            *(v.shape.heads, v.shape.split_k, v.shape.swap_ab),
        )
        for v in VARIANTS
        if not (v.shape.d_batched or v.shape.grouped or v.shape.clc or v.shape.multicast)
    ]
    assert [v.name for v in VARIANTS if v.shape.multicast] == [
        f"sm100_gemm_{tile}_bf16_multicast"
        for tile in ("mxf4_256x192x256", "nvf4_256x128x256", "mxf8_k128_256x192x128")
    ]
    assert {v.name for v in VARIANTS if v.shape.clc} == {
        f"sm100_gemm_mxf4_{tile}x256_{d}_clc" for tile in ("128x128", "256x192") for d in ("bf16", "f32")
    }
    k_major = {
        **dict.fromkeys(("mxf4", "mxf8", "mxf8_k128"), (32, 64, 128, 192)),
        "nvf4": (32, 64, 128),
        **dict.fromkeys(("mxf8_mxf4", "mxf8_k128_mxf4"), (32, 128, 192)),
        **dict.fromkeys(("mxf4_mxf8", "mxf4_mxf8_k128"), (32, 128)),
    }
    pairs = {**dict.fromkeys(("mxf4", "mxf8", "mxf8_k128"), (128, 192)), "nvf4": (128,)}
    pairs |= dict.fromkeys(("mxf8_mxf4", "mxf8_k128_mxf4"), (192,))
    tiles = {(form, "k", "k", 1): tiles_n for form, tiles_n in k_major.items()} | {
        (form, *majors, 1): (128,)
        for form in ("mxf8", "mxf8_k128")
        for majors in (("k", "mn"), ("mn", "k"), ("mn", "mn"))
    }
    tiles |= {(form, "k", "k", 2): tiles_n for form, tiles_n in pairs.items()}
    wanted = {
        (*form, n, d, c, False, False, False)
        for form in tiles
        for n in tiles[form]
        for d in ("bf16", "f32")
        for c in (False, True)
    }
    quantizing = ("mxf4", "nvf4", "mxf8", "mxf8_k128", "mxf8_mxf4")
    wanted |= {(form, "k", "k", 1, 128, "mxf8", False, False, False, False) for form in quantizing}
    wanted |= {(form, "k", "k", 1, 128, "nvf4", False, False, False, False) for form in ("nvf4", "mxf8")}
    wanted.add(("mxf8_k128", "k", "k", 2, 128, "bf16", False, False, True, False))
    in_pairs = (("mxf8", "mxf8"), ("mxf8_k128", "mxf8"), ("nvf4", "nvf4"))
    wanted |= {(form, "k", "k", 2, 128, d, False, False, False, False) for form, d in in_pairs}
    heads = [(form, "bf16") for form in ("mxf4", "nvf4", "mxf8", "mxf8_k128")] + [("mxf8_k128", "f32")]
    wanted |= {(form, "k", "k", 1, 128, d, False, True, False, False) for form, d in heads}
    sharing = ("mxf4", "nvf4", "mxf8", "mxf8_k128")
    wanted |= {
        (form, "k", "k", 1, 64, d, c, False, True, False)
        for form in sharing
        for d in ("bf16", "f32")
        for c in ((False, True) if form == "mxf8_k128" else (False,))
    }
    mixed = ("mxf8_mxf4", "mxf8_k128_mxf4")
    wanted |= {(form, "k", "k", 1, 64, "bf16", False, False, True, False) for form in mixed}
    wanted |= {(form, "k", "k", 1, 32, "bf16", False, False, True, True) for form in ("mxf8", "mxf8_k128")}
    wanted |= {
        (form, "k", "k", 1, n, d, c, False, False, True)
        for form, tiles_n in k_major.items()
        for n, d, c in ((32, d, c) for d in ("bf16", "f32") for c in (False, True))
        if (d, c) == ("bf16", False) or 64 in tiles_n
    }
    assert len(shapes) == len(wanted)
    assert set(shapes) == wanted
    assert [v.name for v in variants("sm_103a")] == [v.name for v in variants(ARCH)]
    assert len({v.name for v in variants(ARCH)}) == len(variants(ARCH))
    assert variants("sm_90a") == variants("sm_120a") == []


def test_variants_of_several_outputs() -> None:
    tiles = ("128x128x128_f32_k_grouped_tn", "128x192x128_f32_k_grouped", "256x192x128_f32_k_grouped")
    k_grouped = [f"{form}_{tile}_accumulate" for form in ("mxf8", "mxf8_k128") for tile in tiles]
    layouts = ("bf16_batched", "f32_batched", "bf16_batched_nn", "f32_batched_nn", "f32_batched_tn")
    sums = tuple(f"{d}_accumulate" for d in ("bf16_batched", "f32_batched", "f32_batched_tn"))
    forms = ("mxf8", "mxf8_k128")
    batched = [f"{form}_128x128x128_{output}" for form in forms for output in layouts + sums]
    found = [v.name.removeprefix("sm100_gemm_") for v in VARIANTS if v.shape.d_batched]
    assert sorted(found) == sorted(k_grouped + batched)


def test_variants_of_groups_of_rows() -> None:
    quantizing = [
        v.name for v in VARIANTS if v.shape.grouped and v.shape.quantized and v.shape.cta_group == 2
    ]
    assert quantizing == [
        f"sm100_gemm_{of}"
        for of in (
            "mxf8_256x128x128_mxf8_by_sizes",
            "mxf8_k128_256x128x128_mxf8_by_sizes",
            "mxf8_k128_256x128x128_mxf8_by_indices",
        )
    ]
    assert [v.name for v in VARIANTS if v.shape.grouped and v.name not in quantizing] == [
        f"sm100_gemm_{form}_128x128x{k}_bf16_by_{grouping}"
        for form, k in (
            *(("mxf4", 256), ("nvf4", 256), ("mxf8", 128), ("mxf8_k128", 128)),
            *(("mxf8_mxf4", 128), ("mxf8_k128_mxf4", 128), ("mxf4_mxf8", 128), ("mxf4_mxf8_k128", 128)),
        )
        for grouping in ("indices", "sizes")
    ] + [f"sm100_gemm_{form}_128x128x128_bf16_by_indices_nn" for form in ("mxf8", "mxf8_k128")] + [
        f"sm100_gemm_{form}_bf16_swap_ab_by_{grouping}"
        for form in (
            *("mxf4_128x32x256", "nvf4_128x32x256", "mxf8_128x32x128", "mxf8_k128_128x32x128"),
            *("mxf8_mxf4_128x32x128", "mxf8_k128_mxf4_128x32x128"),
            *("mxf4_mxf8_128x32x128", "mxf4_mxf8_k128_128x32x128"),
        )
        for grouping in ("indices", "sizes")
    ] + [
        f"sm100_gemm_{form}_128x128x128_mxf8_by_{grouping}"
        for form in ("mxf8", "mxf8_k128")
        for grouping in ("indices", "sizes")
    ] + [
        f"sm100_gemm_{form}_{tile}_bf16_by_{grouping}"
        for grouping in ("sizes", "indices")
        for form, tile in (
            *(("mxf4", "256x192x256"), ("nvf4", "256x128x256"), ("mxf8", "256x192x128")),
            *(("mxf8_k128", "256x192x128"), ("mxf8_k128_mxf4", "256x192x128")),
        )
        if grouping == "sizes" or form in ("mxf4", "nvf4", "mxf8_k128")
    ]


@pytest.mark.parametrize(
    "only",
    [
        "*_mxf4_128x192x256_f32_accumulate",
        "sm100_gemm_bf16_256x256x64_bf16",
        "sm100_gemm_mxf8_128x128x128_mxf8",
    ],
)
def test_sm103_has_the_ptx_of_sm100(tmp_path: Path, only: str) -> None:
    archs = ("sm_100a", "sm_103a")
    request = Request(tmp_path, archs=archs, packages=("sm100",), only=only)
    assert not build(request, say=lambda line: None).failures
    names = {entry["name"] for entry in read(tmp_path)}
    assert names
    for name in names:
        ptx = [(tmp_path / arch / f"{name}.ptx").read_text() for arch in archs]
        assert ptx[0].replace(".target sm_100a", ".target sm_103a") == ptx[1]


@every_variant
def test_registers_hold_everything(compiled: dict[str, Compiled], variant: Variant) -> None:
    entry = compiled[variant.name].entry
    assert entry["spill_bytes"] == entry["local_bytes"] == 0
    assert entry["registers"] * variant.shape.threads <= 65536


@every_variant
def test_interface_is_what_the_variant_states(compiled: dict[str, Compiled], variant: Variant) -> None:
    kernel = compiled[variant.name].kernel
    assert [p.nbytes for p in kernel.params] == [p.nbytes for p in variant.params]
    names = [
        "map_a",
        "map_b",
        "map_sfa",
        "map_sfb",
        *["map_c"] * variant.shape.loads_c,
        "map_d",
        "m",
        "n",
        "k",
        *["batches"] * variant.shape.d_batched,
        *["ks"] * variant.shape.k_grouped,
        *["a", "b", "map_slots"] * variant.shape.group_maps,
        *["global_a", "global_b"] * variant.shape.format.global_scales,
        *["sfd", "sfd_blocked"] * variant.shape.quantized,
        *["sfd_carry"] * (variant.shape.d_dtype == "mxf8"),
        *["global_d"] * (variant.shape.d_dtype == "nvf4"),
        *["head_width", "head_right", "head_mid"] * variant.shape.heads,
        *["slots", "flags", "share"] * variant.shape.split_k,
        *["layout", "groups", "alignment", "d", "row_stride", "matrix_stride"] * variant.shape.grouped,
        *["global_a_step", "global_b_step"] * (variant.shape.grouped and variant.shape.global_scales),
    ]
    assert [p.name for p in variant.params] == names
    assert kernel.reqntid == variant.block == (256 + 32 * variant.shape.clc, 1, 1)
    assert variant.cluster == (variant.shape.cta_group * (1 + variant.shape.multicast), 1, 1)
    config = compiled[variant.name].entry["config"]
    assert (config["family_dtype"], config["tile_n"], config["smem_bytes"]) == (
        variant.shape.family_dtype,
        variant.shape.tile_n,
        variant.dynamic_shared,
    )


@every_variant
def test_shared_memory_ends_where_shape_says(compiled: dict[str, Compiled], variant: Variant) -> None:
    c = compiled[variant.name]
    # The word for tcgen05.alloc is the last one: its address is a register, set to the window's base plus an offset.
    address = c.kernel.instructions[c.all("tcgen05", "alloc")[0]].operands[0]
    assert isinstance(address, ptx.Address)
    place = next(i for i in c.kernel.instructions if i.opcode == "add" and i.operands[0] == address.base)
    offset = place.operands[2]
    assert isinstance(offset, ptx.Immediate)
    assert offset.integer() + 4 == variant.dynamic_shared == variant.shape.smem_bytes
    assert all(align == 1024 for _, align in c.kernel.shared.values())


@every_variant
def test_barriers_expect_their_arrivals(compiled: dict[str, Compiled], variant: Variant) -> None:
    c, s = compiled[variant.name], variant.shape
    inits = {c.offset(at): c.constant(at, 1) for at in c.all("mbarrier", "init")}
    arrivals = [inits[offset] for offset in sorted(inits)]
    # scales, full, empty; acc_full, acc_empty; one of C for each staging buffer of four warps.
    # Both CTAs of a pair fill its first CTA's stages and empty its accumulators.
    # Two pairs empty a stage together.
    # Before them, responses of which all warps but the last tell that they have read them.
    expected = [1] * s.clc_stages + [(s.warps - 1) * s.cta_group] * s.clc_stages
    expected += (
        [1] * s.stages
        + [2 * s.cta_group] * s.stages
        + [1 + s.multicast] * s.stages
        + [1] * 2
        + [4 * s.cta_group] * 2
    )
    assert arrivals == expected + [1] * s.c_barriers
    assert max(inits) + 8 + 4 == variant.dynamic_shared
    assert len(c.all("fence", "mbarrier_init")) == 1


@every_variant
def test_transaction_bytes_are_those_of_whole_boxes(compiled: dict[str, Compiled], variant: Variant) -> None:
    c = compiled[variant.name]
    # By multicast, a box of the other pair's is the other half of A.
    expected = {
        box_bytes(variant, "map_b") + box_bytes(variant, "map_a") * (1 + variant.shape.multicast),
        box_bytes(variant, "map_sfa", "map_sfb"),
    }
    if variant.shape.loads_c:
        expected.add(box_bytes(variant, "map_c"))
    expected |= {16} if variant.shape.clc else set()
    assert {c.constant(at, 1 + 1) for at in c.all("mbarrier", "arrive", "expect_tx")} == expected


@every_variant
def test_tensor_memory_is_given_back(compiled: dict[str, Compiled], variant: Variant) -> None:
    c, s = compiled[variant.name], variant.shape
    (alloc,), (dealloc,) = c.all("tcgen05", "alloc"), c.all("tcgen05", "dealloc")
    assert c.constant(alloc, 1) == c.constant(dealloc, 1) == s.tmem_columns
    assert len(c.all("tcgen05", "relinquish_alloc_permit")) == 1
    assert 2 * s.tile_n + s.stages * s.sf_atoms * 4 <= s.tmem_columns
    for at in (alloc, dealloc, *c.all("tcgen05", "relinquish_alloc_permit")):
        assert f"cta_group::{s.cta_group}" in c.kernel.instructions[at].modifiers


# Kind, elements of A and B, block, scale format, scale words of a K tile, and the scale byte of each MMA: None where
# it changes with the K tile, and tests on the emulator see what it is.
MULTIPLY = {
    "mxf4": ("mxf4", "e2m1", "e2m1", "block32", "ue8m0", 2, (0, 2, 0, 2)),
    "nvf4": ("mxf4nvf4", "e2m1", "e2m1", "block16", "ue4m3", 4, (0, 0, 0, 0)),
    "mxf8": ("mxf8f6f4", "e4m3", "e4m3", "block32", "ue8m0", 1, (0, 1, 2, 3)),
    "mxf8_k128": ("mxf8f6f4", "e4m3", "e4m3", "block32", "ue8m0", 1, None),
    "mxf8_mxf4": ("mxf8f6f4", "e4m3", "e2m1", "block32", "ue8m0", 1, (0, 1, 2, 3)),
    "mxf4_mxf8": ("mxf8f6f4", "e2m1", "e4m3", "block32", "ue8m0", 1, (0, 1, 2, 3)),
    "mxf8_k128_mxf4": ("mxf8f6f4", "e4m3", "e2m1", "block32", "ue8m0", 1, None),
    "mxf4_mxf8_k128": ("mxf8f6f4", "e2m1", "e4m3", "block32", "ue8m0", 1, None),
}


@every_variant
def test_multiply_loop(compiled: dict[str, Compiled], variant: Variant) -> None:
    c = compiled[variant.name]
    products = c.all("tcgen05", "mma")
    loop = c.loop(products[0])
    # Behind the loop over whole K tiles, groups of rows of K have one for each number of MMAs that the last one has.
    rows = variant.shape.k_grouped and not variant.shape.group_maps
    less = rows and variant.shape.format.k_multiple < variant.shape.tile_k
    assert [at in loop for at in products] == [True] * 4 + [False] * (1 + 2 + 3) * less
    kind, element_a, element_b, block, scale, words, ids = MULTIPLY[variant.shape.family_dtype]
    assert c.count(loop, "tcgen05", "cp") == words * (1 + -(-variant.shape.tile_n // 128))
    assert c.count(loop, "tcgen05", "commit") == c.count(loop, "mbarrier", "try_wait") == 1
    assert not any(c.count(loop, opcode) for opcode in ("div", "rem", "ld", "shfl"))
    # One for each, which the assembler leaves out: a warp issues these once.
    issued = sum(c.count(loop, "tcgen05", opcode) for opcode in ("cp", "mma", "commit"))
    assert c.count(loop, "elect") == issued
    ctas = variant.shape.cta_group
    for at in products:
        name = c.kernel.instructions[at].modifiers
        assert name[:5] == ("mma", f"cta_group::{ctas}", f"kind::{kind}", "block_scale", block)
    for at in c.all("tcgen05", "cp") + c.all("tcgen05", "commit"):
        assert f"cta_group::{ctas}" in c.kernel.instructions[at].modifiers
    for at in c.all("tcgen05", "commit"):
        assert ("multicast::cluster" in c.kernel.instructions[at].modifiers) == (ctas == 2)
        assert ctas == 1 or variant.shape.multicast or c.constant(at, 1) == 0b11
    if variant.shape.multicast:  # of all when a stage is done; of which pair when a tile is, a register says
        (of_stage,) = (at for at in c.all("tcgen05", "commit") if at in loop)
        assert c.constant(of_stage, 1) == 0b1111
    for at, scale_id in zip(products[:4], ids or (), strict=ids is not None):
        d = decode_instruction_descriptor(c.constant(at, 3), kind, ctas, block)
        assert (d.m, d.n, d.a_format, d.b_format) == (128 * ctas, variant.shape.tile_n, element_a, element_b)
        assert (d.scale_format, d.transpose_a, d.transpose_b) == (
            scale,
            variant.shape.a_major == "mn",
            variant.shape.b_major == "mn",
        )
        assert d.scale_id_a == d.scale_id_b == scale_id


@every_variant
def test_load_loops(compiled: dict[str, Compiled], variant: Variant) -> None:
    c = compiled[variant.name]
    loads, of_matrices = (
        c.all("cp", "async", "bulk", "tensor", dims, "shared::cta") for dims in ("2d", "3d")
    )
    # A pair's operands are announced in its first CTA.
    flat, several = (c.all("cp", "async", "bulk", "tensor", dims, "shared::cluster") for dims in ("2d", "3d"))
    operands = [c.kernel.instructions[at].modifiers for at in flat + several]
    assert len(operands) == (2 if variant.shape.cta_group == 2 else 0)
    assert all("cta_group::2" in modifiers for modifiers in operands)
    assert sum("multicast::cluster" in modifiers for modifiers in operands) == variant.shape.multicast
    of_matrices += several
    loads += flat + of_matrices
    # Two boxes for each load warp, and every store's C.
    stores = variant.shape.stores if variant.shape.loads_c else 0
    assert len(loads) == 4 + stores
    of_groups = {"": stores * variant.shape.k_grouped, "indices": 2, "sizes": 4}
    wanted = len(loads) if variant.shape.batched else of_groups[variant.shape.grouping]
    assert len(of_matrices) == wanted
    loops = {c.loop(at) for at in loads if c.count(c.loop(at), "tcgen05", "ld") == 0}
    assert len(loops) == 2
    for loop in loops:
        assert c.count(loop, "cp", "async", "bulk") == 2
        assert c.count(loop, "mbarrier", "try_wait") == 1
        assert not any(c.count(loop, opcode) for opcode in ("div", "rem", "elect", "ld", "shfl"))


@every_variant
def test_values_are_read_after_the_wait(compiled: dict[str, Compiled], variant: Variant) -> None:
    c = compiled[variant.name]
    waits = c.all("tcgen05", "wait::ld")
    reads = c.all("tcgen05", "ld")
    each = 2 if variant.shape.swap_ab and variant.shape.d_dtype == "bf16" else 1  # halves of the lanes
    # Of a tile that is stored, and of one whose sums are left to another CTA.
    assert len(waits) == variant.shape.reads * (1 + variant.shape.split_k)
    for read_at, wait_at in zip(reads, [wait for wait in waits for _ in range(each)], strict=True):
        values = registers(c.kernel.instructions[read_at].operands[0])
        assert values
        between = c.kernel.instructions[read_at + 1 : wait_at]
        assert not any(registers(operand) & values for i in between for operand in i.operands)


def registers(operand: ptx.Operand) -> set[ptx.Operand]:
    """Registers that an operand names, and what else an address begins with."""
    if isinstance(operand, ptx.Register):
        return {operand}
    if isinstance(operand, ptx.Address):
        return {operand.base}
    return set(operand.items) if isinstance(operand, ptx.Vector) else set()


@every_variant
def test_dependent_launch(compiled: dict[str, Compiled], variant: Variant) -> None:
    c = compiled[variant.name]
    # The two load warps, and the store warps for C and for what D's memory held before; where there are groups,
    # all for them.
    waits = c.all("griddepcontrol", "wait")
    assert len(waits) == 3 + (variant.shape.k_grouped or variant.shape.grouped)
    assert len(c.all("griddepcontrol", "launch_dependents")) == 1
    several = variant.shape.d_batched or variant.shape.grouping == "sizes"
    store = "reduce.async" if variant.shape.accumulate and not variant.shape.loads_c else "async"
    stores = c.all("cp", *store.split("."), "bulk", "tensor", "3d" if several else "2d", "global")
    loads = "3d" if variant.shape.batched or variant.shape.grouping == "sizes" else "2d"
    first = min(c.all("cp", "async", "bulk", "tensor", loads, "shared::cta")), min(stores)
    assert min(waits) < min(first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile_n": 40}, "tile_n 40"),
        ({"tile_n": 288}, "tile_n 288"),
        ({"tile_n": 144}, "whole stores of 32"),
        ({"tile_m": 64}, "tile_m 64"),
        ({"family_dtype": "mxf6"}, "family_dtype 'mxf6'"),
        ({"cta_group": 2}, "tile_m 128"),
        ({"cta_group": 3}, "cta_group 3"),
        ({"d_dtype": "f16"}, "d_dtype 'f16'"),
        ({"stages": 1}, "stages 1"),
        ({"stages": 7}, "232448"),
        ({"stages": 4, "tile_n": 256}, "TMEM columns of 512"),
        ({"acc_stages": 1}, "acc_stages 1"),
        ({"group_m": 0}, "group_m 0"),
        ({"tile_n": 96}, "3 stores in turns of two"),
        ({"tile_n": 48, "swap_ab": True}, "whole stores of 32"),
        ({"swap_ab": True, "d_dtype": "mxf8"}, "at most one of"),
        ({"grouping": "sizes", "heads": True}, "at most one of"),
        ({"grouping": "sizes", "swap_ab": True}, "swapped in groups: 32 rows, to BF16"),
        ({"grouping": "sizes", "accumulate": True}, "C is added to no D"),
        ({"swap_ab": True, "tile_m": 256, "cta_group": 2}, "cta_group 2: this tile is one CTA's"),
        ({"k_grouped": True}, "groups along K: no FP4"),
        ({"k_grouped": True, "b_major": "mn"}, "groups along K: A and B are alike"),
        ({"batched": True, "d_dtype": "mxf8"}, "at most one of"),
    ],
)
def test_shape_refuses(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"tile_n": 128, "stages": 6, "d_dtype": "bf16", "accumulate": False}
    Shape(**fields)
    with pytest.raises(AssertionError, match=message):
        Shape(**{**fields, **change})


@pytest.mark.parametrize("shape", [v.shape for v in VARIANTS], ids=[v.name for v in VARIANTS])
def test_fitting_leaves_no_room_for_a_stage(shape: Shape) -> None:
    with pytest.raises(AssertionError, match=r"of 232448|of 512"):
        replace(shape, stages=shape.stages + 1)
