"""Command line: `python -m cute_kernels list | build | inspect`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Subcommands import what they need themselves: an up-to-date build needs neither the DSL nor torch.
DEFAULT_FOLDER = Path("build")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand. 0: done; 1: it failed and said why; 2: the request makes no sense."""
    options = parser().parse_args(arguments)
    from cute_kernels.build.errors import BuildError

    try:
        return int(options.run(options))
    except BuildError as error:
        print(f"cute_kernels {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(prog="cute_kernels", description=__doc__)
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
    command.set_defaults(run=run_build)

    command = commands.add_parser(
        "inspect", help="registers, shared memory and instruction mix of built cubins"
    )
    command.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER, help="what `build` wrote")
    add_selection(command)
    command.set_defaults(run=run_inspect)
    return root


def add_selection(command: argparse.ArgumentParser) -> None:
    """Options that choose kernels."""
    command.add_argument(
        "--arch", action="append", help="architecture, e.g. sm_100a; repeatable (default: all)"
    )
    command.add_argument("--only", metavar="PATTERN", help="family or name: a part of it, or with * and ?")
    command.add_argument(
        "--package", action="append", help="kernel package; repeatable (default: the project's)"
    )


def selection(options: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Packages and architectures that the options choose."""
    from cute_kernels.build import families

    return tuple(options.package or families.PACKAGES), tuple(options.arch or families.ARCHS)


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
    request = driver.Request(options.out, archs, options.only, not options.no_ptx, options.jobs, packages)
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


if __name__ == "__main__":
    sys.exit(main())
