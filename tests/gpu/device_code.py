"""Compiles the tiny kernels around `cute_kernels.device` for sm_90a: `python -m tests.gpu.device_code FOLDER`.

The emulator's tests run the ring, the tile walk, the scale transpose and the epilogue's staging alone; none of them
needs Blackwell. This writes their cubins, inputs and expected outputs, so that test_device_code.py can run the very
same code on a Hopper GPU where there is no DSL.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from typing import Any

import cutlass.cute as cute
import numpy as np
import torch
from cutlass import Float32, Int32
from numpy.typing import NDArray

from cute_kernels.scheduler import cta_tiles
from tests.emulate import (
    test_device_scales,
    test_device_store,
    test_device_tiles,
    test_group_maps,
    test_ring,
)

ARCH = "sm_90a"


def pointer(dtype: Any) -> Any:
    return cute.runtime.make_ptr(dtype, 1024, cute.AddressSpace.gmem, assumed_align=16)


class Writer:
    """Puts cases into a folder: NAME.cubin, NAME.npz, and a list of launches."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.cases: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        name: str,
        entry: Any,
        arguments: tuple[Any, ...],
        params: list[dict[str, Any]],
        arrays: dict[str, NDArray[Any]],
        grid: int,
        threads: int,
        shared: int,
    ) -> None:
        """params: in launch order, {"array": name}, {"i32": value} or {"map": array, ...} for a tensor map.

        arrays: inputs under their names, and what the kernel must leave in them under "expected_NAME": what they
            held where there is none, and anything in those whose name begins with "scratch_".
        """
        with tempfile.TemporaryDirectory() as scratch:
            options = f"--gpu-arch {ARCH} --keep-ptx --keep-cubin --dump-dir={scratch}"
            compiled = cute.compile(entry, *arguments, options=options)
        symbol = compiled.__ptx__.split(".entry", 1)[1].split("(", 1)[0].strip()
        (self.folder / f"{name}.cubin").write_bytes(compiled.__cubin__)
        np.savez_compressed(self.folder / f"{name}.npz", allow_pickle=False, **arrays)
        self.cases.append(
            {
                "name": name,
                "entry": symbol,
                "params": params,
                "grid": grid,
                "threads": threads,
                "shared": shared,
            }
        )

    def close(self) -> None:
        (self.folder / "cases.json").write_text(json.dumps(self.cases, indent=1) + "\n")


def add_ring(to: Writer, stages: int) -> None:
    source = np.arange(test_ring.ITEMS * 32, dtype=np.int32) * 3 + 1
    target = np.full((test_ring.READERS, source.size), -1, np.int32)
    arrays = {
        "source": source,
        "target": target,
        "expected_target": source + np.arange(test_ring.READERS, dtype=np.int32)[:, None],
    }
    to.add(
        f"ring_{stages}",
        test_ring.entry,
        (pointer(Int32), pointer(Int32), stages, ""),
        [{"array": "source"}, {"array": "target"}],
        arrays,
        grid=1,
        threads=32 + 32 * test_ring.READERS,
        shared=stages * (32 * 4 + 2 * 8),
    )


def add_tiles(to: Writer, tile: tuple[int, int, int], m: int, n: int, grid: int) -> None:
    tile_m, tile_n, group_m = tile
    tiles_m, tiles_n = -(-m // tile_m), -(-n // tile_n)
    capacity = -(-tiles_m * tiles_n // grid) + 1
    out = np.full((grid, capacity, 2), test_device_tiles.UNWRITTEN, np.int32)
    expected = out.copy()
    for cta in range(grid):
        walked = cta_tiles(cta, grid, tiles_m, tiles_n, group_m)
        expected[cta, : len(walked)] = np.array(walked, np.int32).reshape(-1, 2) * (tile_m, tile_n)
    to.add(
        f"tiles_{tile_m}x{tile_n}_{group_m}_{m}x{n}",
        test_device_tiles.entry,
        (pointer(Int32), Int32(0), Int32(0), Int32(0), tile_m, tile_n, group_m, 1),
        [{"array": "out"}, {"i32": capacity}, {"i32": m}, {"i32": n}],
        {"out": out, "expected_out": expected},
        grid=grid,
        threads=32,
        shared=0,
    )


def add_transpose(to: Writer, atoms: int) -> None:
    source = np.random.default_rng(0).integers(-(2**31), 2**31, (atoms, 128)).astype(np.int32)
    expected = np.zeros_like(source)
    for row in range(128):
        expected[:, row % 32 * 4 + row // 32] = source[:, row]
    to.add(
        f"transpose_{atoms}",
        test_device_scales.entry,
        (pointer(Int32), pointer(Int32), atoms),
        [{"array": "source"}, {"array": "target"}],
        {"source": source, "target": np.zeros_like(source), "expected_target": expected},
        grid=1,
        threads=32,
        shared=atoms * 512,
    )


def add_store(to: Writer, name: str) -> None:
    """Of sums without a C: no GPU before sm_100 adds one as the epilogue does."""
    kind, dtype, row_bytes = test_device_store.TYPES[name]
    torch.manual_seed(1)
    values, c = torch.randn(32, 32), torch.randn(32, 32).to(dtype)
    expected = values.to(dtype)

    def raw(tensor: torch.Tensor) -> NDArray[np.uint8]:
        return tensor.view(torch.uint8).numpy()

    tensor_map = {
        "dtype": name,
        "dims": [32, 32],
        "pitch": row_bytes,
        "box": [32, 32],
        "swizzle": f"{row_bytes}B",
    }
    to.add(
        f"store_{name}_plain",
        test_device_store.entry,
        (pointer(Float32), kind, False),
        [{"array": "values"}, {"map": "c", **tensor_map}, {"map": "d", **tensor_map}],
        {"values": values.numpy(), "c": raw(c), "d": np.full_like(raw(c), 7), "expected_d": raw(expected)},
        grid=1,
        threads=32,
        shared=32 * row_bytes + 8,
    )


def add_group_maps(to: Writer) -> None:
    """Maps hold addresses, so what is left in the slots is not compared."""
    a, b, expected = test_group_maps.operands()
    slots, ctas = test_group_maps.STAGES + 1, test_group_maps.CTAS
    out = np.full((ctas, *expected.shape), 0xFB, np.uint8)
    line, rows = test_group_maps.LINE, test_group_maps.ROWS
    box = {"dtype": "u8", "pitch": test_group_maps.K, "box": [line, rows], "swizzle": "none"}
    maps = [
        {"map": name, "dims": [test_group_maps.K, extent], **box}
        for name, extent in (("a", test_group_maps.M), ("b", test_group_maps.N))
    ]
    to.add(
        "group_maps",
        test_group_maps.entry,
        test_group_maps.arguments(slots),
        [*maps, *({"array": name} for name in ("a", "b", "scratch_slots", "ks", "out"))],
        {
            "a": a,
            "b": b,
            "scratch_slots": np.zeros(test_group_maps.room_bytes(slots), np.uint8),
            "ks": np.array(test_group_maps.LENGTHS, np.int32),
            "out": out,
            "expected_out": np.stack([expected] * ctas),
        },
        grid=ctas,
        threads=64,
        shared=test_group_maps.SHARED,
    )


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    to = Writer(pathlib.Path(sys.argv[1]))
    for stages in (1, 2, 3):
        add_ring(to, stages)
    for shape in ((1, 1, 3), (1000, 1000, 7), (3000, 130, 5), (100, 4000, 148)):
        for tile in ((128, 192, 8), (128, 32, 3), (64, 128, 1)):
            add_tiles(to, tile, *shape)
    for atoms in (1, 6):
        add_transpose(to, atoms)
    for name in test_device_store.TYPES:
        add_store(to, name)
    add_group_maps(to)
    to.close()
    print(f"{len(to.cases)} cases in {to.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
