"""Bandwidth of NVFP4 to BF16 against a device-to-device copy: python -m perf.bench_nvfp4_dequantize [--json FILE].

Runs the operation as users do, with the cubins of CUTE_KERNELS_CUBINS or build/; no DSL. For every size, first the
result is compared with the reference bit for bit; then the operation and a copy that reads and writes as many bytes
in all take turns, on inputs that L2 no longer holds. The exit status is 1 if a result is wrong, or if for a tensor
past 256 MB (the BF16 one) the bandwidth is below --min-ratio of the copy's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cute_kernels import formats, ops, table
from cute_kernels.runtime import context
from perf.timing import environment, interleaved

LARGE = 256 * 2**20  # bytes of the result from which the ratio counts
BLOCK = formats.NVFP4_GROUP


class Size(NamedTuple):
    """experts: None for a matrix with one global scale."""

    experts: int | None
    rows: int
    columns: int

    @property
    def elements(self) -> int:
        return (self.experts or 1) * self.rows * self.columns

    @property
    def moved(self) -> int:
        """Bytes read and written: codes, scales, BF16."""
        return self.elements // 2 + self.elements // BLOCK + self.elements * 2

    def __str__(self) -> str:
        return " x ".join(str(extent) for extent in self if extent is not None)


SIZES = (
    Size(None, 4096, 4096),
    Size(None, 8192, 8192),
    Size(None, 16384, 8208),
    Size(None, 16384, 16384),
    Size(None, 53248, 16384),
    Size(64, 4096, 2048),
    Size(128, 2048, 7168),
)


class Operands(NamedTuple):
    packed: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor
    out: torch.Tensor


def operands(size: Size, seed: int) -> Operands:
    """Random codes; every scale code but NaN's."""
    random = torch.Generator(device="cuda").manual_seed(seed)
    lead = (size.rows,) if size.experts is None else (size.experts, size.rows)

    def draw(high: int, columns: int) -> torch.Tensor:
        shape = (*lead, columns)
        return torch.randint(0, high, shape, dtype=torch.uint8, device="cuda", generator=random)

    scale_shape = () if size.experts is None else (size.experts,)
    return Operands(
        packed=draw(256, size.columns // 2),
        scales=draw(127, size.columns // BLOCK).view(torch.float8_e4m3fn),
        global_scale=torch.rand(scale_shape, device="cuda", generator=random) + 0.01,
        out=torch.full((*lead, size.columns), torch.nan, dtype=torch.bfloat16, device="cuda"),
    )


def wrong_elements(given: Operands) -> int:
    """Run the operation once and count the elements whose bits are not the reference's."""
    ops.nvfp4_dequantize(given.packed, given.scales, given.global_scale, out=given.out)
    wrong = 0
    # The reference needs some 20 times the memory of the result; so a part at a time.
    step = max(1, 2**25 // (given.out[0].numel()))
    for start in range(0, len(given.out), step):
        part = slice(start, start + step)
        scale = given.global_scale[part] if given.global_scale.ndim else given.global_scale
        reference = formats.dequantize(
            given.packed[part], given.scales[part], group=(1, BLOCK), global_scale=scale
        ).to(torch.bfloat16)
        wrong += int((reference.view(torch.int16) != given.out[part].view(torch.int16)).sum())
    return wrong


def measure(size: Size, l2_bytes: int, rounds: int) -> dict[str, Any]:
    """Check and time one size."""
    sets = [operands(size, seed) for seed in range(max(2, -(-3 * l2_bytes // size.moved)))]
    half = size.moved // 2
    copies = [
        (
            torch.randint(0, 256, (half,), dtype=torch.uint8, device="cuda"),
            torch.empty(half, dtype=torch.uint8, device="cuda"),
        )
        for _ in sets
    ]

    def run(given: Operands) -> Callable[[], object]:
        return lambda: ops.nvfp4_dequantize(given.packed, given.scales, given.global_scale, out=given.out)

    def copy(source: torch.Tensor, destination: torch.Tensor) -> Callable[[], object]:
        return lambda: destination.copy_(source)

    wrong = wrong_elements(sets[0])
    times = interleaved(
        {"operation": [run(given) for given in sets], "copy": [copy(*pair) for pair in copies]}, rounds
    )
    ours, theirs = times["operation"], times["copy"]
    return {
        "size": str(size),
        "result_bytes": size.elements * 2,
        "moved_bytes": size.moved,
        "wrong_elements": wrong,
        "operation_us": {k: round(v, 2) for k, v in ours._asdict().items()},
        "copy_us": {k: round(v, 2) for k, v in theirs._asdict().items()},
        "operation_tb_s": round(size.moved / ours.median / 1e6, 3),
        "copy_tb_s": round(2 * half / theirs.median / 1e6, 3),
        "ratio": round(theirs.median / ours.median, 4),
    }


def kernel() -> dict[str, Any]:
    """What ran, as the manifest names it."""
    backend = context.backend_for(torch.device("cuda", torch.cuda.current_device()))
    (record,) = context.library().find("nvfp4_dequantize", backend.archs)
    return {
        "name": record.name,
        "arch": record.arch,
        "config": dict(record.config),
        "cubin_sha256": record.cubin_sha256,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="perf.bench_nvfp4_dequantize", description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--rounds", type=int, default=40, help="launches timed for each size")
    parser.add_argument("--min-ratio", type=float, default=0.85, help="of the copy's bandwidth, past 256 MB")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure", file=sys.stderr)
        return 1

    where = environment()
    results = [measure(size, int(where["l2_bytes"]), options.rounds) for size in SIZES]
    report = {"benchmark": "nvfp4_dequantize", "environment": where, "kernel": kernel(), "results": results}
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")

    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(f"medians of {options.rounds}, in turns; bytes read and written")
    print(
        table.render(
            ("size", "MB moved", "us", "TB/s", "copy TB/s", "of the copy", "wrong"),
            [
                (
                    r["size"],
                    round(r["moved_bytes"] / 1e6),
                    r["operation_us"]["median"],
                    r["operation_tb_s"],
                    r["copy_tb_s"],
                    f"{r['ratio']:.1%}",
                    r["wrong_elements"],
                )
                for r in results
            ],
        )
    )
    slow = [r["size"] for r in results if r["result_bytes"] > LARGE and r["ratio"] < options.min_ratio]
    if slow:
        print(f"below {options.min_ratio:.0%} of the copy: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow or any(r["wrong_elements"] for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
