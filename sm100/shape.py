"""What one compiled GEMM for SM100 is, block-scaled or BF16: plain integers, no DSL and no GPU.

The kernel, the launch, the heuristics and the tests read these figures; none of them works one out again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cute_kernels.device.umma_formats import FORMATS, Format, Major, OperandTile
from sm100.staging import D_BITS, EPILOGUE_WARPS, LANES, DDtype, Staging

SHARED_MEMORY = 232_448  # bytes that a CTA may use on sm_100 and sm_103
TMEM_COLUMNS = 512  # of 128 lanes x 32 bits
SF_ATOM_BYTES = 512  # 128 rows x 4 scale factors: what one tcgen05.cp.32x128b.warpx4 moves
SF_ATOM_COLUMNS = 4  # TMEM columns that it fills
SWIZZLE_PATTERN = 1024  # bytes after which SWIZZLE_128B repeats: stages and their operands start on that
BARRIER_BYTES = 8
PATTERNS_BYTES = 2 * 128  # tensor maps of A and B that those of groups are made of

Grouping = Literal["", "indices", "sizes"]


@dataclass(frozen=True)
class Shape(Staging):
    """D[M, N] = A[M, K] @ B[N, K]^T (+ C).

    tile_n: columns of D a tile, 32 to 256.
    stages: depth of the ring of operand stages.
    d_dtype: element type of D and C; "mxf8" is E4M3 with a UE8M0 scale factor for 32 columns, "nvf4"
        E2M1 with a UE4M3 one for 16.
    accumulate: whether C is added, which D holds where it is FP32 (`loads_c`).
    family_dtype: the operands' formats, a key of umma_formats.FORMATS.
    a_major, b_major: the dimension of A, and of B, that is contiguous in memory: "k", or "mn" for M or N.
    batched: whether there are several outputs, and as many products of block-scaled operands, or more of BF16.
    heads: whether D has a gap in every head (device/heads.py), of block-scaled operands.
    k_grouped: whether there are several outputs, each of a slice of K (device/k_groups.py): rows of an A and a B that
        are MN-major, or matrices of its own that are K-major.
    group_m: tile rows that the tile order keeps together for the sake of L2 (cute_kernels/scheduler.py).
    cta_group: CTAs that compute a tile, 1 or 2: a pair has 256 rows, and loads half of B each.
    multicast: whether clusters are of two pairs, with tiles side by side, that load A for each other (device/pair.py).
    split_k: whether CTAs share the K tiles of a tile (device/splitk.py).
    grouping: how rows belong to groups, each of which has a B of its own (device/groups.py); "" where there is one B.
        Of swapped operands, rows of B belong to groups, and each has an A.
    clc: whether CTAs ask for their tiles (device/launch_control.py), instead of every so many-th being theirs.
    tile_m: rows of D a tile, 128 for each CTA. acc_stages: accumulators in TMEM, fixed for now.
    swap_ab: whether D is [N, M], what it stores being A @ B^T transposed: B @ A^T, by which a B of few rows wastes
        no rows of the tensor core. tile_n is 16 or more then.
    """

    tile_n: int
    stages: int
    d_dtype: DDtype
    accumulate: bool
    family_dtype: str = "mxf4"
    a_major: Major = "k"
    b_major: Major = "k"
    batched: bool = False
    k_grouped: bool = False
    group_m: int = 8
    tile_m: int = 128
    acc_stages: int = 2
    cta_group: int = 1
    multicast: bool = False
    heads: bool = False
    split_k: bool = False
    swap_ab: bool = False
    grouping: Grouping = ""
    clc: bool = False

    def __post_init__(self) -> None:
        assert self.family_dtype in FORMATS, f"family_dtype {self.family_dtype!r}: not one of {list(FORMATS)}"
        assert self.cta_group in (1, 2), f"cta_group {self.cta_group}: 1, or 2 for a CTA pair"
        assert self.tile_m == 128 * self.cta_group, f"tile_m {self.tile_m}: each CTA has 128 rows"
        assert self.tile_n in range(16, 257, 16), f"tile_n {self.tile_n}: N is 16, 32 .. 256"
        assert self.d_dtype in D_BITS, f"d_dtype {self.d_dtype!r}"
        assert not (self.quantized and self.accumulate), "a quantized D has no C"
        assert not (self.quantized and self.tile_n % 128), f"tile_n {self.tile_n}: not whole words of scales"
        assert self.stages >= 2, f"stages {self.stages}: loads overlap the MMAs"
        assert self.acc_stages >= 2, f"acc_stages {self.acc_stages}: MMAs overlap the epilogue"
        assert self.group_m >= 1, f"group_m {self.group_m}"
        assert self.tile_n % self.store_columns == 0, (
            f"tile_n {self.tile_n}: not whole stores of {self.store_columns}"
        )
        assert self.stores % self.store_stages == 0, (
            f"tile_n {self.tile_n}: {self.stores} stores in turns of two"
        )
        assert self.used_tmem_columns <= TMEM_COLUMNS, (
            f"{self.used_tmem_columns} TMEM columns of {TMEM_COLUMNS}"
        )
        either = (self.swap_ab and not self.split_k) or self.grouped
        quantized = self.quantized and not (self.d_dtype == "mxf8" and self.grouped and not self.swap_ab)
        kinds = (
            self.batched,
            self.k_grouped,
            self.heads,
            self.split_k,
            self.clc,
            quantized,
            either,
            self.multicast,
        )
        assert sum(kinds) <= 1, (
            "at most one of batches, groups, gaps, shared, swapped, asked for tiles, quantized D, multicast, "
            "but MXFP8 of groups, and shared and swapped"
        )
        assert not self.multicast or (self.cta_group, self.a_major) == (2, "k"), (
            "multicast: K-major A, of two pairs"
        )
        assert self.scaled or not self.heads, "gaps are for block-scaled operands"
        assert self.store_reads == 1 or not self.heads, "gaps: stores of 32 columns"
        assert not ((self.heads or self.grouped) and self.accumulate), (
            "C is added to no D with gaps or groups of rows"
        )
        assert not self.swap_ab or self.cta_group == 1, f"cta_group {self.cta_group}: this tile is one CTA's"
        assert not self.k_grouped or self.a_major == self.b_major, "groups along K: A and B are alike"
        assert not self.group_maps or self.format.bits >= 8, "groups along K: no FP4"
        assert not (self.swap_ab and self.split_k) or self.tile_n == LANES, "swapped and shared: 32 rows"
        if self.swap_ab and self.grouped:
            assert (self.tile_n, self.d_dtype) == (LANES, "bf16"), "swapped in groups: 32 rows, to BF16"
        assert self.operand_tiles, "which checks the operands' majorness"
        assert self.smem_bytes <= SHARED_MEMORY, f"{self.smem_bytes} bytes of {SHARED_MEMORY}"

    @classmethod
    def fitting(
        cls,
        tile_n: int,
        d_dtype: DDtype,
        accumulate: bool,
        family_dtype: str = "mxf4",
        a_major: Major = "k",
        b_major: Major = "k",
        batched: bool = False,
        cta_group: int = 1,
        **others: Any,
    ) -> Shape:
        """Return the shape with as many stages as shared memory and TMEM hold. others: further fields."""
        others |= {"tile_m": 128 * cta_group, "cta_group": cta_group}
        shape = cls(tile_n, 2, d_dtype, accumulate, family_dtype, a_major, b_major, batched, **others)
        stage = shape.stage_bytes + shape.stage_barriers * BARRIER_BYTES
        stages = shape.stages + (SHARED_MEMORY - shape.smem_bytes) // stage
        if shape.scaled:
            stages = min(stages, (TMEM_COLUMNS - shape.first_sf_column) // shape.sf_columns)
        return replace(shape, stages=stages)

    @property
    def d_batched(self) -> bool:
        """Whether there are several outputs."""
        return self.batched or self.k_grouped

    @property
    def group_maps(self) -> bool:
        """Whether groups along K have tensor maps of their own, which the kernel makes (device/group_maps.py)."""
        return self.k_grouped and self.a_major == "k"

    @property
    def map_slots(self) -> int:
        """Slots in global memory that a CTA's maps take turns in."""
        return self.stages + 1

    @property
    def scaled(self) -> bool:
        """Whether the operands have scale factors, which two warps more bring and transpose."""
        return self.format.block > 0

    @property
    def warps(self) -> int:
        """Warps of a CTA: those that store, load and multiply, load scales and transpose them, and ask for tiles."""
        return EPILOGUE_WARPS + (4 if self.scaled else 2) + self.clc

    @property
    def cluster(self) -> int:
        """CTAs of a cluster."""
        return self.cta_group * (1 + self.multicast)

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return 32 * self.warps

    @property
    def format(self) -> Format:
        """The operands' formats."""
        return FORMATS[self.family_dtype]

    @property
    def global_scales(self) -> bool:
        """Whether D is multiplied by a factor of A and one of B."""
        return self.format.global_scales

    @property
    def tile_k(self) -> int:
        """Elements along K of a tile."""
        return self.format.tile_k

    @property
    def grouped(self) -> bool:
        """Whether rows belong to groups."""
        return self.grouping != ""

    # Operand stages: A | B | scale factors of A | of B, one after another.

    @property
    def a_tile(self) -> OperandTile:
        """A's part of a stage: the rows of one CTA."""
        return OperandTile(self.format.a, self.tile_m // self.cta_group, self.a_major)

    @property
    def a_load(self) -> OperandTile:
        """What one CTA loads of it: all, or by multicast half, for its counterpart in the other pair too."""
        return OperandTile(self.format.a, self.a_tile.rows // (1 + self.multicast), self.a_major)

    @property
    def b_tile(self) -> OperandTile:
        """B's part of a stage: the rows that one CTA loads."""
        return OperandTile(self.format.b, self.tile_n // self.cta_group, self.b_major)

    @property
    def operand_tiles(self) -> tuple[OperandTile, OperandTile]:
        """Both of them."""
        return self.a_tile, self.b_tile

    @property
    def k_step(self) -> int:
        """A K tile, in elements of those of their tensor maps that have fewer for it: of both, or half the other's."""
        return min(self.a_load.k_step, self.b_tile.k_step)

    @property
    def several_boxes(self) -> bool:
        """Whether a K tile of A or of B has several, and their tensor map brings them as one."""
        return any(tile.boxes > 1 for tile in self.operand_tiles)

    @property
    def a_bytes(self) -> int:
        """Bytes of A in a stage."""
        return self.a_tile.nbytes

    @property
    def b_bytes(self) -> int:
        """Bytes of B in a stage."""
        return self.b_tile.nbytes

    @property
    def ab_load_bytes(self) -> int:
        """Bytes that TMA counts for A and B of a stage: less than they take where it unpacks an operand."""
        a, b = (of.bytes_in_memory(self.tile_k) for of in (self.format.a, self.format.b))
        return self.a_tile.rows * a + self.b_tile.rows * b

    @property
    def sf_words(self) -> int:
        """Packed int32 words (four scale factors) of a row in a stage."""
        return self.format.words

    @property
    def sfa_rows(self) -> int:
        """Rows of A's scale factors in a stage."""
        return self.a_tile.rows

    @property
    def sfb_rows(self) -> int:
        """Rows of B's scale factors in a stage, all of the tile's in each CTA.

        Whole atoms, so more than tile_n where 128 does not divide it.
        """
        return -(-self.tile_n // 128) * 128

    @property
    def sfa_bytes(self) -> int:
        """Bytes of A's scale factors in a stage."""
        return self.sfa_rows * self.sf_words * 4

    @property
    def sfb_bytes(self) -> int:
        """Bytes of B's scale factors in a stage."""
        return self.sfb_rows * self.sf_words * 4

    @property
    def sf_atoms(self) -> int:
        """Atoms of 128 rows x 4 scale factors in a stage, A's first, the rows of a word together."""
        return (self.sfa_bytes + self.sfb_bytes) // SF_ATOM_BYTES

    @property
    def b_offset(self) -> int:
        """Bytes from the start of a stage to its B."""
        return self.a_bytes

    @property
    def sf_offset(self) -> int:
        """Bytes from the start of a stage to its scale factors."""
        return self.a_bytes + self.b_bytes

    @property
    def stage_bytes(self) -> int:
        """Bytes of one stage: every box whole, whatever of it lies outside the tensors; in whole swizzle patterns."""
        return -(-(self.sf_offset + self.sfa_bytes + self.sfb_bytes) // SWIZZLE_PATTERN) * SWIZZLE_PATTERN

    # Shared memory and TMEM as wholes.

    @property
    def c_barriers(self) -> int:
        """Barriers that announce a box of C: one a staging buffer."""
        return EPILOGUE_WARPS * self.store_stages if self.loads_c else 0

    @property
    def stage_barriers(self) -> int:
        """Barriers of a stage: full, empty, and where there are scale factors, those loaded."""
        return 3 if self.scaled else 2

    @property
    def barriers(self) -> int:
        """All mbarriers: those of the stages, two an accumulator, and those of C."""
        return self.stage_barriers * self.stages + 2 * self.acc_stages + self.c_barriers

    @property
    def clc_stages(self) -> int:
        """Responses that may be ahead of the slowest role, which is two accumulators behind the load."""
        return 3 if self.clc else 0

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory: stages, staging, patterns of maps, barriers and what tcgen05.alloc writes."""
        stages = self.stages * self.stage_bytes + self.staging_bytes + PATTERNS_BYTES * self.group_maps
        return stages + self.clc_stages * (16 + 2 * BARRIER_BYTES) + self.barriers * BARRIER_BYTES + 4

    @property
    def sfa_columns(self) -> int:
        """TMEM columns of a stage's scale factors of A."""
        return self.sfa_bytes // SF_ATOM_BYTES * SF_ATOM_COLUMNS

    @property
    def sfb_columns(self) -> int:
        """TMEM columns of a stage's scale factors of B."""
        return self.sfb_bytes // SF_ATOM_BYTES * SF_ATOM_COLUMNS

    @property
    def sf_columns(self) -> int:
        """TMEM columns of a stage's scale factors."""
        return self.sfa_columns + self.sfb_columns

    @property
    def first_sf_column(self) -> int:
        """TMEM column of the first stage's scale factors: behind the accumulators."""
        return self.acc_stages * self.tile_n

    @property
    def used_tmem_columns(self) -> int:
        """TMEM columns in use: accumulators, and scale factors for every stage.

        A slot for each stage, because the ISA does not order a tcgen05.cp behind an earlier tcgen05.mma (9.7.16.6.2,
        pipelined instructions): only the stage's own barriers say that the MMAs which read a slot are done.
        """
        return self.first_sf_column + self.stages * self.sf_columns

    @property
    def tmem_columns(self) -> int:
        """TMEM columns to allocate: a power of two from 32 to 512."""
        return max(32, 1 << (self.used_tmem_columns - 1).bit_length())

    @property
    def slot_bytes(self) -> int:
        """A CTA's slot in the workspace of shared tiles: the FP32 sums of its rows of one."""
        return self.a_tile.rows * self.tile_n * 4

    def config(self) -> dict[str, int | str | bool]:
        """Return what the manifest carries for the host: all fields, and the derived figures that launches need."""
        return {
            **asdict(self),
            "tile_k": self.tile_k,
            "smem_bytes": self.smem_bytes,
            "tmem_columns": self.tmem_columns,
            # It waits for the kernel before it itself (griddepcontrol.wait), so it may be launched early.
            "pdl": True,
            # Bytes of global memory for each CTA, of which none need be as they were in the launch before.
            **({"map_slot_bytes": self.map_slots * PATTERNS_BYTES} if self.group_maps else {}),
            **({"flags": EPILOGUE_WARPS, "slot_bytes": self.slot_bytes} if self.split_k else {}),
        }
