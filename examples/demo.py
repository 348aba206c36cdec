"""What `make demo` runs once the cubins are built: the kernels on a real model's numbers, and a table.

    python examples/demo.py --cubins DIR

A feed-forward layer of all-MiniLM-L6-v2 in MXFP4 (mlp_mxfp4.py), and a weight of it in NVFP4, dequantized.
Each kernel runs on the GPU if there is one that it is built for, else on the emulator.

Exit status 1 if a result is off by more than rounding.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import mlp_mxfp4
import torch

from cute_kernels import ops, runtime, table, trials
from cute_kernels.checkpoints import open_checkpoint
from cute_kernels.emulator import EmulationError
from cute_kernels.formats import dequantize, quantize_nvfp4

HEADER = ("operation", "shape", "device", "kernel error", "format error", "hazards", "seconds", "")
WEIGHT = "encoder.layer.3.intermediate.dense.weight"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cubins", type=Path, help="what `cute_kernels build` wrote (default: as ops choose)"
    )
    parser.add_argument("--arch", default="sm_100a", help="architecture to emulate (default: %(default)s)")
    options = parser.parse_args(arguments)
    runtime.set_cubins(options.cubins)

    model = mlp_mxfp4.packaged_model()
    rows: list[mlp_mxfp4.Row] = []
    cells: list[list[str]] = []
    for title, family, run in (
        ("a feed-forward layer in MXFP4", "sm100.gemm_blockscaled", feed_forward),
        ("a weight from NVFP4 to BF16", "sm80.nvfp4_dequantize", dequantized_weight),
    ):
        place = trials.Place(None if trials.gpu_has(family) else options.arch)
        print(f"{title}: {place} ...", flush=True)
        try:
            with place.active():
                made = run(model, place.device)
        except EmulationError as fault:
            print(f"the emulator found a fault:\n{fault}", file=sys.stderr)
            return 1
        rows += made
        cells += [line(row, place) for row in made]
    print(f"\n{table.render(HEADER, cells)}\n\n{where(runtime.library().folder)}")
    return 0 if all(row.passed for row in rows) else 1


def feed_forward(model: Path, device: str) -> list[mlp_mxfp4.Row]:
    """The layer's two products, the layer, and what becomes of sentences."""

    def gemm(a: mlp_mxfp4.Operand, b: mlp_mxfp4.Operand, dtype: torch.dtype) -> torch.Tensor:
        return ops.gemm_nt(a, b, out_dtype=dtype)

    return mlp_mxfp4.run(model, gemm, device=device)


def dequantized_weight(model: Path, device: str) -> list[mlp_mxfp4.Row]:
    """A weight in NVFP4, which the kernel must turn into BF16 bit for bit."""
    weight = open_checkpoint(model).load([WEIGHT], device)[WEIGHT]
    data, scales, factor = quantize_nvfp4(weight)
    start = time.perf_counter()
    out = ops.nvfp4_dequantize(data, scales, factor)
    if out.is_cuda:
        torch.cuda.synchronize(out.device)
    seconds = time.perf_counter() - start
    exact = dequantize(data, scales, group=(1, 16), global_scale=factor)
    row = mlp_mxfp4.Row(
        "layer 3 weight, NVFP4 to BF16",
        " x ".join(map(str, weight.shape)),
        mlp_mxfp4.relative_error(out, exact.to(torch.bfloat16)),
        mlp_mxfp4.relative_error(out, weight),
        mlp_mxfp4.calc_diff(out, weight),
        seconds,
        torch.equal(out, exact.to(torch.bfloat16)),
    )
    return [row]


def line(row: mlp_mxfp4.Row, place: trials.Place) -> list[str]:
    """A row of the table. A hazard would have raised an EmulationError: a launch that returned met none."""
    return [
        row.operation,
        row.shape,
        str(place),
        "" if row.kernel_error is None else f"{row.kernel_error:.1e}",
        f"{row.format_error:.1e}",
        "none" if place.arch else "not checked",
        f"{row.seconds:.2f}",
        "ok" if row.passed else "FAILED",
    ]


def where(folder: Path) -> str:
    """What lies in the cubin folder."""
    entries = json.loads((folder / "manifest.json").read_text())["kernels"]
    archs = sorted({entry["arch"] for entry in entries}, key=lambda arch: int(arch.strip("sm_a")))
    return (
        f"kernel error: against the float64 product of the quantized operands, rounding only\n"
        f"format error: against the weights and activations before they were quantized\n"
        f"{len(entries)} cubins for {', '.join(archs)} lie in {folder.resolve()}\n"
        f"their manifest is {folder.resolve() / 'manifest.json'}"
    )


if __name__ == "__main__":
    sys.exit(main())
