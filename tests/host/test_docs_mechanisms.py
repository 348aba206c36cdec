"""The table in docs/sm100.md of what each format's kernels can do: what `sm100.variants` compiles, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import sm100
from sm100.shape import Shape

PAGE = (Path(__file__).parents[2] / "docs" / "sm100.md").read_text()
SHAPES = [variant.shape for variant in sm100.variants("sm_100a")]
TYPES = {"bf16": "BF16", "f32": "FP32", "mxf8": "MXFP8", "nvf4": "NVFP4"}


def plain(s: Shape) -> bool:
    """Of a dense product of operands that are contiguous along K."""
    special = s.grouped or s.k_grouped or s.d_batched or s.heads or s.quantized
    return not special and (s.a_major, s.b_major) == ("k", "k")


def types(shapes: list[Shape]) -> str:
    """Of D, and with C where it is added."""
    found = [name for key, name in TYPES.items() if any(s.d_dtype == key for s in shapes)]
    with_c = [TYPES[key] for key in TYPES if any(s.d_dtype == key and s.accumulate for s in shapes)]
    added = ["C"] if found and found == with_c else [f"C in {name}" for name in with_c]
    return ", ".join(found + added) or "-"


def kinds(shapes: list[Shape]) -> str:
    """Of groups."""
    found = {"K" if s.k_grouped else str(s.grouping) for s in shapes if s.grouped or s.k_grouped}
    return ", ".join(kind for kind in ("indices", "sizes", "K") if kind in found) or "-"


def quantized(shapes: list[Shape]) -> str:
    """Types of a quantized D, with what else it may be."""
    of = {key: [s for s in shapes if s.d_dtype == key] for key in ("mxf8", "nvf4")}
    found = []
    for key, some in of.items():
        more = (["pairs"] if any(s.cta_group == 2 for s in some) else []) + (
            ["groups"] if any(s.grouped for s in some) else []
        )
        if some:
            found.append(TYPES[key] + (f" ({', '.join(more)})" if more else ""))
    return ", ".join(found) or "-"


def by_columns(shapes: list[Shape]) -> str:
    """Products of operands that are contiguous along M or N."""
    some = [s for s in shapes if (s.a_major, s.b_major) != ("k", "k")]
    where = {
        "dense": [s for s in some if not (s.grouped or s.k_grouped or s.d_batched)],
        "indices": [s for s in some if s.grouping == "indices"],
        "sizes": [s for s in some if s.grouping == "sizes"],
        "K": [s for s in some if s.k_grouped],
        "einsum": [s for s in some if s.d_batched],
    }
    return ", ".join(name for name, found in where.items() if found) or "-"


COLUMNS: dict[str, Callable[[list[Shape]], str]] = {
    "pairs": lambda all_: types(
        [s for s in all_ if plain(s) and s.cta_group == 2 and not s.split_k and not s.clc]
    ),
    "groups": lambda all_: kinds([s for s in all_ if s.cta_group == 1 and not s.swap_ab and not s.quantized]),
    "groups of pairs": lambda all_: kinds([s for s in all_ if s.cta_group == 2 and not s.quantized]),
    "groups, swap-AB": lambda all_: kinds([s for s in all_ if s.swap_ab]),
    "swap-AB": lambda all_: types([s for s in all_ if plain(s) and s.swap_ab and not s.split_k]),
    "split-K": lambda all_: types([s for s in all_ if plain(s) and s.split_k]),
    "CLC": lambda all_: types([s for s in all_ if plain(s) and s.clc]),
    "quantized D": quantized,
    "MN-major": by_columns,
}
FORMATS = sorted({s.family_dtype for s in SHAPES})


def row(form: str) -> str:
    shapes = [s for s in SHAPES if s.family_dtype == form]
    return f"| `{form}` | " + " | ".join(column(shapes) for column in COLUMNS.values()) + " |"


def test_the_columns() -> None:
    assert f"| format | {' | '.join(COLUMNS)} |" in PAGE


@pytest.mark.parametrize("form", FORMATS)
def test_a_format(form: str) -> None:
    assert row(form) in PAGE, row(form)
