"""The block-scaled GEMM of SM100 as compiled: what its PTX says agrees with what Shape and Variant tell the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from cute_kernels.build.manifest import read
from cute_kernels.build.variant import Variant
from cute_kernels.emulator import ptx
from cute_kernels.emulator.umma_descriptors import decode_instruction_descriptor
from sm100 import variants
from tests.building import Request, build
from tests.compile.compiled import Compiled, box_bytes, compile_all

ARCH = "sm_100a"
VARIANTS = [v for v in variants(ARCH) if v.kernel == "gemm_blockscaled"]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=[v.name for v in VARIANTS])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """All variants by name."""
    return compile_all(tmp_path_factory.mktemp("cubins"), ARCH, "gemm_blockscaled")


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
