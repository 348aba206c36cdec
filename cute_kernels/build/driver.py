"""The ahead-of-time build: what is out of date, compiled side by side, and the manifest."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cute_kernels.build import families, manifest, sources
from cute_kernels.build.compile import Outcome, compile_target, write_atomically
from cute_kernels.build.errors import BuildError
from cute_kernels.build.families import Target

RECIPE = "cute_kernels.build.compile"  # a change of how kernels are compiled rebuilds them


@dataclass(frozen=True)
class Request:
    """archs, packages: what to build from; only: a pattern on family or name; ptx: keep it beside the cubin;
    jobs: processes, 0 = one a core; reuse: a folder of an earlier build, to copy from what is up to date there."""

    out: Path
    archs: tuple[str, ...] = families.ARCHS
    only: str | None = None
    ptx: bool = True
    jobs: int = 0
    packages: tuple[str, ...] = families.PACKAGES
    reuse: Path | None = None


@dataclass
class Result:
    """Numbers of targets, and the failures by label."""

    compiled: int = 0
    up_to_date: int = 0
    kept: int = 0  # of other architectures or names, left as they were
    kept_stale: int = 0  # those of them whose sources have changed since, or are out of sight
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)


def build(request: Request, say: Callable[[str], None] = print) -> Result:
    """Bring the cubins of a request up to date and write the manifest; `say` gets the lines of progress.

    A kernel that fails is left out of the manifest, and the others are built all the same.
    Raises BuildError where there is nothing to build or no DSL to build with.
    """
    started = time.perf_counter()
    targets = families.select(families.collect(request.packages, request.archs), request.only)
    if not targets:
        raise BuildError(
            f"no kernel to build for {', '.join(request.archs)}"
            + (f" matches {request.only!r}" if request.only else "")
            + "; `python -m cute_kernels list` names them all"
        )
    hashes = source_hashes(families.collect(request.packages, families.ARCHS), request.packages)
    request.out.mkdir(parents=True, exist_ok=True)
    with locked(request.out, say):
        result = bring_up_to_date(request, targets, hashes, say)
    result.seconds = time.perf_counter() - started
    return result


def bring_up_to_date(
    request: Request, targets: Sequence[Target], hashes: dict[str, str], say: Callable[[str], None]
) -> Result:
    """Compile the stale targets; write the manifest even when interrupted, so that nothing is lost."""
    if request.reuse is not None:
        copy_fresh(request.reuse, request, targets, hashes)
    old = {manifest.stem(entry): entry for entry in manifest.read(request.out)}
    wanted = {target.stem: target for target in targets}
    entries = {
        stem: entry
        for stem, entry in old.items()
        if stem not in wanted and (stem in hashes or entry["package"] not in request.packages)
    }
    outdated = [stem for stem, entry in entries.items() if entry["source_hash"] != hashes.get(stem)]
    result = Result(kept=len(entries), kept_stale=len(outdated))
    stale = []
    for stem, target in wanted.items():
        entry = old.get(stem)
        fresh = entry is not None and entry["source_hash"] == hashes[stem]
        if entry is not None and fresh and manifest.files_intact(request.out, entry, request.ptx):
            entries[stem] = entry if request.ptx else entry | {"ptx": None, "ptx_sha256": None}
            result.up_to_date += 1
        else:
            stale.append(target)
    try:
        for count, (target, outcome) in enumerate(compile_all(stale, request, say), start=1):
            progress = f"[{count:{len(str(len(stale)))}}/{len(stale)}]"
            if outcome.error:
                result.failures[target.label] = outcome.error
                say(f"{progress} FAILED {target.label}")
                continue
            entry = manifest.entry_of(target, outcome.figures, hashes[target.stem], sources.dsl_version())
            entries[target.stem] = entry
            result.compiled += 1
            say(f"{progress} {target.label}: {entry['registers']} registers, {outcome.seconds:.1f} s")
    finally:
        content = manifest.text(list(entries.values()), sources.dsl_version())
        path = request.out / manifest.NAME
        if not path.exists() or path.read_text() != content:
            write_atomically(path, content.encode())
        remove_strays(request.out, list(old.values()), list(entries.values()))
    return result


def copy_fresh(source: Path, request: Request, targets: Sequence[Target], hashes: dict[str, str]) -> None:
    """Take from another build what it has of the targets with the same sources."""
    wanted = {target.stem for target in targets}
    entries = {manifest.stem(entry): entry for entry in manifest.read(request.out)}
    for entry in manifest.read(source):
        stem = manifest.stem(entry)
        fresh = stem in wanted and entry["source_hash"] == hashes[stem]
        stale = entries.get(stem, {}).get("source_hash") != hashes.get(stem)
        if fresh and stale and manifest.files_intact(source, entry, request.ptx):
            for file in filter(None, (entry["cubin"], entry["ptx"])):
                write_atomically(request.out / file, (source / file).read_bytes())
            entries[stem] = entry
    content = manifest.text(list(entries.values()), sources.dsl_version())
    write_atomically(request.out / manifest.NAME, content.encode())


def compile_all(
    stale: Sequence[Target], request: Request, say: Callable[[str], None]
) -> Iterator[tuple[Target, Outcome]]:
    """Compile in processes of their own, in whatever order they finish."""
    if not stale:
        return
    jobs = min(request.jobs or os.cpu_count() or 1, len(stale))
    say(f"compiling {len(stale)} kernels in {jobs} processes")
    died = []
    with pool(jobs) as executor:
        futures = {submit(executor, target, request): target for target in stale}
        try:
            for future in as_completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    died.append(futures[future])
                else:
                    yield futures[future], future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
    # One compile took the whole pool down with it; alone, each of the rest either succeeds or is the culprit.
    for target in died:
        with pool(1) as executor:
            try:
                yield target, submit(executor, target, request).result()
            except BrokenProcessPool:
                reason = "the compiler's process died (out of memory, or an abort inside the DSL)"
                yield target, Outcome(target.stem, 0.0, {}, reason)


def pool(jobs: int) -> ProcessPoolExecutor:
    # spawn: a forked child would share the parent's threads' locks, and the DSL starts threads.
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def submit(executor: ProcessPoolExecutor, target: Target, request: Request) -> Future[Outcome]:
    name = target.variant.name
    return executor.submit(
        compile_target, request.packages, target.package, target.arch, name, request.out, request.ptx
    )


def source_hashes(targets: Sequence[Target], packages: Sequence[str]) -> dict[str, str]:
    """For each target, a hash of all that its compile depends on: sources, variant, DSL and architecture."""
    tree = families.tree(packages)
    digests: dict[str, str] = {}
    hashes = {}
    for target in targets:
        module = target.module
        if module not in digests:
            digests[module] = tree.digest(module, RECIPE)
        parts = [target.arch, digests[module], variant_text(target), *sources.dsl_versions()]
        hashes[target.stem] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return hashes


def variant_text(target: Target) -> str:
    """All fields of a variant as text that is the same in every process."""
    arguments = []
    function = target.variant.compile
    while isinstance(function, partial):
        arguments.append((function.args, sorted(function.keywords.items())))
        function = function.func
    return re.sub(r" at 0x[0-9a-f]+", "", f"{target.variant!r} {arguments!r}")


def remove_strays(out: Path, old: Sequence[manifest.Entry], new: Sequence[manifest.Entry]) -> None:
    """Delete the files that the old manifest names and the new one does not."""
    named = {entry[kind] for entry in new for kind in ("cubin", "ptx")}
    for path in {entry[kind] for entry in old for kind in ("cubin", "ptx")} - named - {None}:
        (out / path).unlink(missing_ok=True)


@contextmanager
def locked(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One build at a time in a folder."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build in {out}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
