"""What one compiled `scale` is."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Shape:
    """per_thread: elements that each thread scales; held: values kept alive at once, 0 for none."""

    per_thread: int
    threads: int = 128
    held: int = 0

    @property
    def name(self) -> str:
        return f"tiny_scale_x{self.per_thread}" + ("_held" if self.held else "")

    def config(self) -> dict[str, int | str | bool]:
        return asdict(self) | {"tile": self.per_thread * self.threads}
