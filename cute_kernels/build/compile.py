"""Compiles one target; runs in a worker process, the only place where the DSL is imported."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cute_kernels.build import families, ptx_text, resources
from cute_kernels.build.errors import BuildError
from cute_kernels.build.families import Target
from cute_kernels.build.sources import Tree

KEEP = "--keep-ptx --keep-cubin"
LINES = "--generate-line-info"


@dataclass(frozen=True)
class Outcome:
    """What came of one target: the manifest's figures of its files, or the reason why there are none."""

    stem: str
    seconds: float
    figures: dict[str, Any]
    error: str = ""


def compile_target(
    packages: tuple[str, ...], package: str, arch: str, name: str, out: Path, ptx: bool
) -> Outcome:
    """Compile one variant and write its cubin (and PTX) below `out`; a failure is an Outcome too."""
    started = time.perf_counter()
    said = io.StringIO()
    try:
        target = find(package, arch, name)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            figures = write_files(target, packages, out, ptx)
    except (
        Exception
    ) as error:  # whatever the DSL raises names this kernel, and the others are built all the same
        text = str(error) if isinstance(error, BuildError) else f"{type(error).__name__}: {error}"
        notes = said.getvalue().strip()
        return Outcome(f"{arch}/{name}", time.perf_counter() - started, {}, f"{text}\n{notes}".strip())
    return Outcome(target.stem, time.perf_counter() - started, figures)


@cache
def targets_of(package: str, arch: str) -> dict[str, Target]:
    return {target.variant.name: target for target in families.collect([package], [arch])}


def find(package: str, arch: str, name: str) -> Target:
    """The target, out of its package: a variant's compile function need not survive pickling."""
    return targets_of(package, arch)[name]


def write_files(target: Target, packages: tuple[str, ...], out: Path, ptx: bool) -> dict[str, Any]:
    """Compile twice, check the results against one another and against the variant, write them.

    The cubin is compiled without line information, so that its bytes do not depend on where the sources lie;
    the PTX with it, so that the emulator can name a line.
    """
    for variable in [name for name in os.environ if name.startswith("CUTE_DSL_")]:
        del os.environ[variable]  # the result depends on the sources alone
    tree, before = families.tree(packages), set(sys.modules)
    plain_ptx, cubin = run_compiler(target, KEEP)
    with_lines, _ = run_compiler(target, f"{KEEP} {LINES}")
    check_modules(target, tree, before)
    ptx_text.check_same_code(plain_ptx, with_lines)
    text = ptx_text.relative_paths(with_lines, tree.roots).encode()

    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / f"{target.variant.name}.cubin"
        draft.write_bytes(cubin)
        used = resources.read(draft)
    ptx_text.check_interface(plain_ptx, target.variant, used.entry)
    if used.complaint and not target.variant.allow_spills:
        raise BuildError(
            f"{used.complaint}; free registers, or state in the variant's allow_spills why it may"
        )

    write_atomically(out / f"{target.stem}.cubin", cubin)
    if ptx:
        write_atomically(out / f"{target.stem}.ptx", text)
    return {
        "entry": used.entry,
        "cubin": f"{target.stem}.cubin",
        "cubin_sha256": hashlib.sha256(cubin).hexdigest(),
        "ptx": f"{target.stem}.ptx" if ptx else None,
        "ptx_sha256": hashlib.sha256(text).hexdigest() if ptx else None,
        "registers": used.registers,
        "spill_bytes": used.spill_bytes,
        "local_bytes": used.local_bytes,
        "static_shared": used.static_shared,
    }


def run_compiler(target: Target, options: str) -> tuple[str, bytes]:
    """PTX and cubin of one compile; the DSL's own copies of them go to a folder that vanishes."""
    with tempfile.TemporaryDirectory() as scratch:
        compiled = target.variant.compile(target.arch, f"{options} --dump-dir={scratch}")
        return str(compiled.__ptx__), bytes(compiled.__cubin__)


def check_modules(target: Target, tree: Tree, before: set[str]) -> None:
    """Refuse where the compile loaded a module of the project that the hash of its sources leaves out."""
    loaded = {name for name in set(sys.modules) - before if name.partition(".")[0] in tree.packages}
    unseen = sorted(loaded - tree.closure(target.module).keys())
    if unseen:
        raise BuildError(
            f"compiling loads {', '.join(unseen)}, which no import statement reachable from {target.module} "
            f"names, so a change there would not rebuild the kernel; import it by a plain import statement"
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the path, then rename: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)
