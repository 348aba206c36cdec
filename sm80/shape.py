"""What one compiled kernel of the sm80 family is: plain integers, no DSL and no GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from cute_kernels import w4a16_layout

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a")
# Of those: with TMA and 228 KiB of shared memory an SM, and with cp.async, by bytes of shared memory an SM (CUDA
# programming guide, "Compute Capabilities").
TMA_ARCHS = ("sm_90a", "sm_100a", "sm_103a")
CP_ASYNC_ARCHS = {164 << 10: ("sm_80",), 100 << 10: ("sm_86", "sm_89", "sm_120a")}


@dataclass(frozen=True)
class DequantizeShape:
    """NVFP4 to BF16, one CTA for a run of consecutive elements.

    threads: of a CTA.
    words_per_thread: 4-byte words of packed codes (8 elements each) that a thread decodes.
    """

    threads: int
    words_per_thread: int

    WORD_ELEMENTS = 8  # of 4 bits
    BLOCK_ELEMENTS = 16  # that share a scale factor

    def __post_init__(self) -> None:
        assert self.threads in range(32, 1025, 32), f"{self.threads} threads are not 1 to 32 whole warps"
        assert self.words_per_thread >= 1, f"{self.words_per_thread} words a thread"

    @property
    def words_per_cta(self) -> int:
        """Words that a CTA decodes."""
        return self.threads * self.words_per_thread

    @property
    def blocks_per_cta(self) -> int:
        """Blocks of 16 elements that a CTA decodes."""
        return self.words_per_cta * self.WORD_ELEMENTS // self.BLOCK_ELEMENTS

    def config(self) -> dict[str, int | str | bool]:
        """Return what the manifest carries for the host: the fields, and what the grid needs."""
        return {**asdict(self), "blocks_per_cta": self.blocks_per_cta}


@dataclass(frozen=True)
class RepackShape:
    """NVFP4 weights into the packed layout: one warp for a unit of 16 rows x 128 k, a CTA for units side by side
    along K.

    warps: of a CTA.
    """

    warps: int

    UNIT_BLOCKS = w4a16_layout.UNIT_K // w4a16_layout.BLOCK  # of 16 elements, along K

    def __post_init__(self) -> None:
        assert self.warps in range(1, 33), f"{self.warps} warps"

    @property
    def threads(self) -> int:
        """Of a CTA."""
        return 32 * self.warps

    def config(self) -> dict[str, int | str | bool]:
        """Return what the manifest carries for the host: the fields, and what the estimate needs."""
        return {**asdict(self), "threads": self.threads}


@dataclass(frozen=True)
class W4a16Shape:
    """NVFP4 weights W [N, K] times activations X [M, K]: a persistent GEMM.

    x_dtype: "bf16" or "f16", of X and D.
    warp_n, warp_m: rows of W and of X that a consumer warp multiplies.
    warps_n, warps_m, warps_k: consumer warps along N and M of the tile, and along the K of a stage.
    units: K of a stage, in units of the packed layout.
    ctas: CTAs that share an SM, which bounds registers and shared memory.
    stages: of the ring.
    layout: of X and D: "dense", "contiguous" or "masked" (w4a16_tiles.py).
    copy: how stages arrive: "tma", by a warp of its own (gemm_w4a16.py), or "cp_async", by the warps that multiply
        (gemm_w4a16_cp_async.py).
    sm_shared: bytes of shared memory of an SM; each CTA takes 1 KiB besides its own.
    mma: "mma.sync", or "wgmma" for sm_90a alone, with which two warpgroups multiply (w4a16_wgmma.py).
    group_m: tile rows that are walked together (scheduler.tile_coordinates).
    """

    x_dtype: str
    warp_n: int
    warp_m: int
    warps_n: int
    warps_m: int
    warps_k: int
    units: int
    ctas: int
    stages: int
    layout: str = "dense"
    copy: str = "tma"
    sm_shared: int = 228 << 10
    mma: str = "mma.sync"
    group_m: int = 8

    UNIT_K = w4a16_layout.UNIT_K
    UNIT_ROWS = w4a16_layout.UNIT_ROWS
    UNIT_BYTES = w4a16_layout.UNIT_BYTES
    BOX_K = 64  # elements of K in a box of X: 128 bytes, what the swizzle spans

    def __post_init__(self) -> None:
        assert self.x_dtype in ("bf16", "f16"), self.x_dtype
        assert self.layout in ("dense", "contiguous", "masked") and self.copy in ("tma", "cp_async")
        assert self.warp_n in (16, 32, 64) and self.warp_m in range(8, 129, 8), "a warp's tile"
        assert self.mma in ("mma.sync", "wgmma"), self.mma
        assert self.mma == "mma.sync" or (self.consumers == self.warps_n == 8), "two warpgroups"
        assert self.units % self.warps_k == 0, "a K warp takes whole units"
        assert self.tile_m <= 256 and self.units <= 256, "a TMA box has at most 256 rows"
        assert self.threads <= 1024, f"{self.threads} threads"
        assert self.stages >= 2 and self.ctas * (self.smem_bytes + 1024) <= self.sm_shared, self.smem_bytes
        if self.copy == "cp_async":
            assert self.threads % 64 == 0 and self.x_bytes % (self.threads * 16) == 0, "whole passes over X"
            assert self.w_units * 64 % self.threads == 0 and self.w_units * 8 <= self.threads, "and over W"

    @classmethod
    def deepest(
        cls,
        x_dtype: str,
        warp_n: int,
        warp_m: int,
        warps_n: int,
        warps_m: int,
        warps_k: int,
        units: int,
        ctas: int,
        layout: str = "dense",
        copy: str = "tma",
        sm_shared: int = 228 << 10,
        mma: str = "mma.sync",
    ) -> W4a16Shape:
        """Return the shape with as many stages, up to 8, as shared memory holds."""
        fields = (x_dtype, warp_n, warp_m, warps_n, warps_m, warps_k, units, ctas)
        two = cls(*fields, 2, layout, copy, sm_shared, mma)
        more = (sm_shared // ctas - 1024 - two.smem_bytes) // (two.stage_bytes + two.barrier_bytes)
        return replace(two, stages=min(8, 2 + more))

    @property
    def tile_n(self) -> int:
        """Rows of W in a tile of D."""
        return self.warp_n * self.warps_n

    @property
    def tile_m(self) -> int:
        """Rows of X in a tile of D."""
        return self.warp_m * self.warps_m

    @property
    def tile_k(self) -> int:
        """K of a stage."""
        return self.units * self.UNIT_K

    @property
    def consumers(self) -> int:
        """Warps that multiply."""
        return self.warps_n * self.warps_m * self.warps_k

    @property
    def sorters(self) -> int:
        """Warps that put X in the order of K that W has; mma.sync reads it so."""
        return 4 if self.mma == "wgmma" else 0

    @property
    def loader(self) -> int:
        """The warp that loads, with TMA."""
        return self.consumers + self.sorters

    @property
    def flags(self) -> int:
        """Of a slot: one for each warp that stores a part of the tile."""
        return self.warps_n * self.warps_m

    @property
    def registers(self) -> tuple[int, int] | None:
        """A thread's registers while it loads or sorts and while it multiplies, where they are not the same.

        Loading then has a warpgroup, four warps of which one works, since only warpgroups give and take registers.
        What they take must not exceed what the CTA got: 384 threads with 168 each, or 512 with 128.
        """
        if self.sorters:
            return 56, 200
        return (40, 232) if (self.consumers, self.sums) == (8, 128) else None

    @property
    def threads(self) -> int:
        """Of a CTA: the consumers, those that sort and, with TMA, those that load."""
        return 32 * (self.loader + (0 if self.copy == "cp_async" else 4 if self.registers else 1))

    @property
    def x_box_bytes(self) -> int:
        """A box of X: tile_m rows of 128 bytes, swizzled over 1024."""
        return self.tile_m * self.BOX_K * 2

    @property
    def x_bytes(self) -> int:
        """X's part of a stage."""
        return self.x_box_bytes * (self.tile_k // self.BOX_K)

    @property
    def w_units(self) -> int:
        """Units of the packed layout in a stage."""
        return self.tile_n // self.UNIT_ROWS * self.units

    @property
    def w_bytes(self) -> int:
        """W's part of a stage, behind X's."""
        return self.w_units * self.UNIT_BYTES

    @property
    def stage_bytes(self) -> int:
        """From one stage to the next: whole 1024 bytes, after which the swizzle repeats."""
        return -(-(self.x_bytes + self.w_bytes) // 1024) * 1024

    @property
    def sums(self) -> int:
        """Sums that a consumer thread holds."""
        return self.warp_n * self.warp_m // 32

    @property
    def staging_pitch(self) -> int:
        """Bytes from one row to the next in a warp's staging buffer: 16 more than a row has spread the banks."""
        return self.warp_n * 2 + 16

    @property
    def staging_bytes(self) -> int:
        """Where warps turn their sums to rows of D, 8 rows a warp, in whole 128 bytes."""
        return -(-self.flags * 8 * self.staging_pitch // 128) * 128

    @property
    def exchange_bytes(self) -> int:
        """Where the K warps add up their sums: the sums of all but the first."""
        return (self.warps_k - 1) * self.slot_bytes

    @property
    def barrier_bytes(self) -> int:
        """A stage's mbarriers."""
        return (24 if self.sorters else 16) if self.copy == "tma" else 0

    @property
    def smem_bytes(self) -> int:
        """Shared memory in all."""
        stages = self.stages * (self.stage_bytes + self.barrier_bytes)
        return stages + self.staging_bytes + self.exchange_bytes

    @property
    def slot_bytes(self) -> int:
        """A share's slot in the workspace: the FP32 sums of a tile."""
        return self.tile_n * self.tile_m * 4

    def config(self) -> dict[str, int | str | bool]:
        """Return what the manifest carries for the host: the fields, and what launch and estimate need."""
        derived = ("tile_n", "tile_m", "tile_k", "w_bytes", "slot_bytes", "flags")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}, "pdl": self.copy == "tma"}
