"""Kernels: list, compile ahead of time, inspect; run, verify on the emulator, explain the choice of one;
convert checkpoints.

Start with `python -m cute_kernels build`, then for instance
`python -m cute_kernels verify sm100.gemm_blockscaled --m 128 --n 96 --k 256`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cute_kernels.trial_problems import Problem
    from cute_kernels.trials import Trial

# Subcommands import what they need themselves: an up-to-date build needs neither the DSL nor torch.
DEFAULT_FOLDER = Path("build")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand. 0: done; 1: it failed and said why; 2: the request makes no sense."""
    options = parser().parse_args(arguments)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # who reads it, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at exit
        return 0
    except Exception as error:
        # The project's own errors say what to do; a traceback would only hide it. Any other is a bug.
        if not type(error).__module__.startswith("cute_kernels.") and not isinstance(error, ValueError):
            raise
        print(f"cute_kernels {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="cute_kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = root.add_subparsers(dest="command", required=True)

    command = commands.add_parser("list", help="the kernels, their variants and architectures")
    add_selection(command)
    command.set_defaults(run=run_list)

    command = commands.add_parser("build", help="compile cubins ahead of time and write the manifest")
    add_selection(command)
    command.add_argument(
        "--out", type=Path, default=DEFAULT_FOLDER, help="output folder (default: %(default)s)"
    )
    command.add_argument("--no-ptx", action="store_true", help="leave out the PTX that the emulator runs")
    command.add_argument("--jobs", type=int, default=0, help="processes (default: one a core)")
    command.add_argument("--reuse", type=Path, help="earlier build, from which what is up to date is copied")
    command.set_defaults(run=run_build)

    command = commands.add_parser(
        "inspect", help="registers, shared memory and instruction mix of built cubins"
    )
    command.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER, help="what `build` wrote")
    add_pattern(command)
    command.set_defaults(run=run_inspect)

    command = commands.add_parser("run", help="run a kernel once and hold the result against float64")
    add_problem(command)
    command.add_argument("--device", choices=["auto", "cuda", "emulator"], default="auto")
    command.add_argument("--schedule", choices=["eager", "lazy", "random"], default="random")
    command.add_argument("--seed", type=int, default=0, help="of the operands and of the random schedule")
    command.set_defaults(run=run_once)

    command = commands.add_parser("verify", help="run a kernel on the emulator under all schedules and seeds")
    add_problem(command)
    command.add_argument("--seeds", type=int, default=3, help="random schedules, each with its own operands")
    command.set_defaults(run=run_verify)

    command = commands.add_parser("explain", help="which configuration a problem gets, and why")
    add_problem(command)
    command.set_defaults(run=run_explain)

    command = commands.add_parser("convert", help="pack the NVFP4 layers of a checkpoint for the sm80 family")
    command.add_argument("source", type=Path, help="safetensors file, index, or a folder that has either")
    command.add_argument("destination", type=Path, help="folder to make")
    command.add_argument("--device", default="cpu", help="where to pack (default: %(default)s)")
    command.set_defaults(run=run_convert)
    return root


def add_selection(command: argparse.ArgumentParser) -> None:
    """Options that choose kernels out of packages."""
    add_pattern(command)
    command.add_argument(
        "--package", action="append", help="kernel package; repeatable (default: the project's)"
    )


def add_pattern(command: argparse.ArgumentParser) -> None:
    """Options that choose kernels."""
    command.add_argument(
        "--arch", action="append", help="architecture, e.g. sm_100a; repeatable (default: all)"
    )
    command.add_argument("--only", metavar="PATTERN", help="family or name: a part of it, or with * and ?")


def add_problem(command: argparse.ArgumentParser) -> None:
    """Options that state a problem and where its kernel lies."""
    command.add_argument(
        "kernel", nargs="?", help="sm100.gemm_blockscaled, sm100.gemm_bf16, sm80.gemm_w4a16, ..."
    )
    command.add_argument("--op", metavar="OPERATION", help="in place of a kernel: gemm_nt, einsum, ...")
    command.add_argument("--m", type=int, required=True, help="rows")
    command.add_argument("--n", type=int, help="columns of a product")
    command.add_argument(
        "--k", type=int, required=True, help="elements summed over; columns to dequantize or pack"
    )
    command.add_argument(
        "--d-dtype", choices=["bf16", "f32", "mxf8", "nvf4"], default="bf16", help="of a product"
    )
    command.add_argument("--operands", help="of a product: mxf4 (default), nvf4, mxf8, mxf8_k128_mxf4, ...")
    command.add_argument("--layout", choices=["nt", "nn", "tn", "tt"], default="nt", help="of a product")
    command.add_argument(
        "--groups", type=int, default=0, help="of a product: groups of up to m rows, or k of K"
    )
    command.add_argument("--grouped", choices=["contiguous", "prefix", "masked", "k"], default="contiguous")
    command.add_argument(
        "--head-splits", type=int, nargs=3, help="of a product: left, mid and right columns of D's heads"
    )
    command.add_argument("--einsum", metavar="EXPRESSION", help="of batches: bhr,hdr->bhd, bmk,bnk->mn, ...")
    command.add_argument("--batches", type=int, default=2, help="of an expression (default: %(default)s)")
    command.add_argument("--accumulate", action="store_true", help="add C to the product")
    command.add_argument(
        "--scheduling",
        choices=["static", "clc", "auto"],
        default="static",
        help="which CTA has which tile, in nt",
    )
    command.add_argument(
        "--busy-sms", type=int, default=0, help="multiprocessors that other kernels hold, in nt"
    )
    command.add_argument("--arch", default="sm_100a", help="architecture to emulate (default: %(default)s)")
    command.add_argument("--num-sms", type=int, default=8, help="of the emulated device")
    command.add_argument("--cubins", type=Path, help="what `build` wrote (default: as the operations choose)")


def selection(options: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Packages and architectures that the options choose."""
    from cute_kernels.build import families

    packages, archs = options.package or families.PACKAGES, options.arch or families.ARCHS
    return tuple(dict.fromkeys(packages)), tuple(dict.fromkeys(archs))


def run_list(options: argparse.Namespace) -> int:
    from cute_kernels import table
    from cute_kernels.build import families

    targets = families.select(families.collect(*selection(options)), options.only)
    archs: dict[str, list[str]] = {}
    for target in targets:
        archs.setdefault(target.variant.name, []).append(target.arch)
    variants = {target.variant.name: target.variant for target in targets}
    rows = [[v.kernel, name, v.dynamic_shared, " ".join(archs[name])] for name, v in sorted(variants.items())]
    print(table.render(["family", "kernel", "shared B", "architectures"], rows))
    return 0


def run_build(options: argparse.Namespace) -> int:
    from cute_kernels.build import driver, manifest

    packages, archs = selection(options)
    request = driver.Request(
        options.out, archs, options.only, not options.no_ptx, options.jobs, packages, options.reuse
    )
    result = driver.build(request, lambda line: print(line, flush=True))
    for label, reason in result.failures.items():
        print(f"\n{label} was not built: {reason}", file=sys.stderr)
    kept = f", {result.kept} outside this selection kept" if result.kept else ""
    kept += f" ({result.kept_stale} of them out of date)" if result.kept_stale else ""
    print(
        f"{result.compiled} compiled, {result.up_to_date} up to date, {len(result.failures)} failed{kept} "
        f"in {result.seconds:.1f} s: {options.out / manifest.NAME}"
    )
    return 1 if result.failures else 0


def run_inspect(options: argparse.Namespace) -> int:
    from cute_kernels.build import inspection

    print(inspection.inspect(options.folder, tuple(options.arch) if options.arch else None, options.only))
    return 0


def run_once(options: argparse.Namespace) -> int:
    from cute_kernels import trials

    problem = stated(options)
    on_gpu = options.device == "cuda" or (options.device == "auto" and trials.gpu_has(options.kernel))
    place = trials.Place(None if on_gpu else options.arch, options.schedule, options.seed, options.num_sms)
    return report([trials.attempt(problem, place, options.seed)])


def run_verify(options: argparse.Namespace) -> int:
    from cute_kernels import trials

    problem, tried = stated(options), []
    for place, seed in trials.places(options.arch, options.seeds, options.num_sms):
        print(f"{problem} on {place} ...", file=sys.stderr, flush=True)
        tried.append(trials.attempt(problem, place, seed))
    return report(tried)


def run_explain(options: argparse.Namespace) -> int:
    from cute_kernels import heuristics, runtime

    problem = stated(options).to_choose_for()
    records = runtime.library().find(problem.kernel, [options.arch])
    print(heuristics.explain(problem, options.num_sms, {r.name: r.config for r in records}))
    return 0


def run_convert(options: argparse.Namespace) -> int:
    from cute_kernels import nvfp4_convert

    def show(done: int, total: int, name: str) -> None:
        print(f"[{done}/{total}] {name}", file=sys.stderr, flush=True)

    result = nvfp4_convert.convert(options.source, options.destination, options.device, show)
    print(
        f"{result.layers} layers packed, {result.others} tensors copied, {result.nbytes / 1e9:.2f} GB in "
        f"{result.files} files: {options.destination}"
    )
    return 0


def stated(options: argparse.Namespace) -> Problem:
    """The problem that the options state, after switching to their cubins."""
    from cute_kernels import (
        operation_options,
        runtime,
        trial_einsum,
        trial_grouped,
        trial_heads,
        trial_k_grouped,
        trial_problems,
        trial_w4a16,
    )

    operation_options.resolve(options)
    runtime.set_cubins(options.cubins)
    if options.kernel == trial_w4a16.KERNEL:
        of_one = trial_w4a16.product(options.m, options.n, options.k, options.operands)
        if not options.groups:
            return of_one
        return trial_w4a16.of_experts(of_one, options.grouped, options.groups)
    product = trial_problems.problem(
        *(options.kernel, options.m, options.n, options.k),
        *(options.d_dtype, options.accumulate, options.operands, options.layout),
        *(options.scheduling, options.busy_sms),
    )
    if options.einsum:
        return trial_einsum.by_expression(product, options.einsum, options.batches, options.num_sms)
    if options.head_splits:
        return trial_heads.with_heads(product, tuple(options.head_splits))
    if options.groups and options.grouped == "k":
        return trial_k_grouped.of_groups_along_k(product, options.groups)
    return trial_grouped.of_groups(product, options.grouped, options.groups) if options.groups else product


def report(tried: list[Trial]) -> int:
    """Print a table, each fault in full and the verdict; 1 if anything failed."""
    from cute_kernels import trials

    print(trials.render(tried))
    for fault in dict.fromkeys(trial.hazard for trial in tried if trial.hazard):
        print(f"\n{fault}")
    failed = sum(not trial.passed for trial in tried)
    print(f"\n{failed or len(tried)} of {len(tried)} runs {'failed' if failed else 'are right'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
