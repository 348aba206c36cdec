"""What one compiled kernel of the harness is: plain integers, no DSL and no GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a")


@dataclass(frozen=True)
class EmptyShape:
    """A kernel that does nothing."""

    threads: int = 32

    def config(self) -> dict[str, int | str | bool]:
        """Return what the manifest carries for the host."""
        return asdict(self)


@dataclass(frozen=True)
class ReadShape:
    """A kernel that only reads.

    threads: of a CTA. loads: of 16 bytes, all that a thread does, issued before it needs the first.
    """

    threads: int
    loads: int

    PIECE = 16  # bytes of a load

    def __post_init__(self) -> None:
        assert self.threads in range(32, 1025, 32), f"{self.threads} threads are not 1 to 32 whole warps"
        assert 1 <= self.loads <= 16, f"{self.loads} loads of 4 registers each"

    @property
    def pieces(self) -> int:
        """Pieces that a CTA reads."""
        return self.threads * self.loads

    def config(self) -> dict[str, int | str | bool]:
        """Return what the manifest carries for the host: the fields, and what the grid needs."""
        return {**asdict(self), "cta_pieces": self.pieces}


@dataclass(frozen=True)
class MmaSyncShape:
    """A kernel that only multiplies, out of registers.

    warps: of a CTA, of which each multiprocessor gets one. chains: products of a warp that do not wait for each
    other.
    """

    warps: int
    chains: int

    FLOPS = 2 * 16 * 8 * 16  # of one mma m16n8k16

    def __post_init__(self) -> None:
        assert self.warps in range(1, 33), f"{self.warps} warps"
        assert 1 <= self.chains <= 16, f"{self.chains} chains of 6 registers each"

    @property
    def threads(self) -> int:
        """Of a CTA."""
        return 32 * self.warps

    @property
    def words(self) -> int:
        """Of operands, 4 bytes each, that a lane loads: A's fragment, then B's for each chain."""
        return 4 + 2 * self.chains

    @property
    def flops(self) -> int:
        """That a CTA computes in one iteration."""
        return self.warps * self.chains * self.FLOPS

    def config(self) -> dict[str, int | str | bool]:
        """Return what the manifest carries for the host: the fields, and the sizes of its operands and work."""
        return {**asdict(self), "words": self.words, "cta_flops": self.flops}
