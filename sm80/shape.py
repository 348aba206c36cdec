"""What one compiled kernel of the sm80 family is: plain integers, no DSL and no GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cute_kernels import w4a16_layout

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a")


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
