"""Static figures of every cubin: what it takes of the machine and what its loops consist of, and their baseline.

They need no GPU, so they are kept for every architecture. A cubin whose bytes are those that the baseline was read
from is not read again: the build gives the same bytes for the same sources.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cute_kernels import table
from cute_kernels.build import manifest, sass
from cute_kernels.build.errors import BuildError
from perf import sass_loops

FORMAT = 2  # of the baseline; to be raised when the same cubin would give other figures
BASELINE = Path(__file__).parent / "baselines" / "static.json"
SLACK = 0.02  # share of a loop's instructions that may come on top before it counts as worse

# An SM's threads, CTAs and shared memory; the registers are 65536 on all, given to warps in units of 256.
REGISTERS, REGISTER_UNIT = 65536, 256
SM_LIMITS = {
    "sm_80": (2048, 32, 167936),
    "sm_86": (1536, 16, 102400),
    "sm_89": (1536, 24, 102400),
    "sm_90a": (2048, 32, 233472),
    "sm_100a": (2048, 32, 233472),
    "sm_103a": (2048, 32, 233472),
    "sm_120a": (1536, 24, 102400),
}
SHARED_RESERVED = 1024  # bytes a CTA that the system takes, unless the cubin's static figure has them already

Figures = dict[str, Any]  # of one cubin, as the baseline holds them
SHOWN = ("MMA", "TMA", "LDGSTS", "TMEM", "LDS/STS", "LDG/STG", "int", "uniform", "branch", "sync")
HEADER = [
    "arch",
    "kernel",
    "regs",
    "spill B",
    "shared B",
    "CTAs/SM",
    "stages",
    "loop",
    "instr",
    "MMA share",
    "/ 32 col",
]


class Finding(NamedTuple):
    """kernel: architecture and name; worse: whether it fails the check."""

    kernel: str
    text: str
    worse: bool


def figures(folder: Path, entry: manifest.Entry) -> Figures:
    """Figures of one cubin of a folder that the build wrote.

    Raises BuildError where the file is not the one that the manifest records.
    """
    if not manifest.files_intact(folder, entry, with_ptx=False):
        raise BuildError(f"{folder / entry['cubin']} is not the file that the manifest records; build again")
    text = sass.run_tool("nvdisasm", "-c", str(folder / entry["cubin"]))
    x, y, z = entry["block"]
    return {
        "cubin_sha256": entry["cubin_sha256"],
        "registers": entry["registers"],
        "spill_bytes": entry["spill_bytes"],
        "local_bytes": entry["local_bytes"],
        "threads": x * y * z,
        "shared_bytes": entry["dynamic_shared"] + entry["static_shared"],
        "ctas_per_sm": occupancy(entry),
        "stages": entry["config"].get("stages"),
        "loops": {loop.name: loop_figures(loop) for loop in sass_loops.loops(text)},
    }


def loop_figures(loop: sass_loops.Loop) -> Figures:
    """A loop's instructions in all, the least that a turn passes if that is less, and by class; 0 is left out."""
    least = {"least": loop.least} if loop.least < loop.instructions else {}
    columns = {"tmem_columns": loop.tmem_columns} if loop.tmem_columns else {}
    return {"instructions": loop.instructions, **least, **columns, **dict(sorted(loop.counts.items()))}


def least_of(loop: Figures) -> int:
    """Instructions that a turn of a loop passes at least."""
    least: int = loop["least" if "least" in loop else "instructions"]
    return least


def occupancy(entry: manifest.Entry) -> int:
    """CTAs that one SM holds at once, by threads, registers and shared memory; 0: it does not fit."""
    if entry["arch"] not in SM_LIMITS:
        raise BuildError(
            f"{entry['arch']}: what an SM holds is not known; known are {', '.join(SM_LIMITS)}: add it to SM_LIMITS"
        )
    threads, ctas, shared = SM_LIMITS[entry["arch"]]
    x, y, z = entry["block"]
    warps = -(-x * y * z // 32)
    of_warp = -(-entry["registers"] * 32 // REGISTER_UNIT) * REGISTER_UNIT
    wanted = entry["dynamic_shared"] + entry["static_shared"]
    if entry["arch"] in ("sm_80", "sm_86", "sm_89") or not entry["static_shared"]:
        wanted += SHARED_RESERVED
    return min(
        threads // (warps * 32),
        ctas,
        REGISTERS // of_warp // warps if of_warp else ctas,
        shared // wanted,
    )


def read_all(folder: Path, known: dict[str, Figures] | None = None, only: str = "") -> dict[str, Figures]:
    """Figures of the cubins in a folder whose "ARCH NAME" holds `only`, by that.

    known: figures to hold the cubins against. Only those that have changed since are read; the figures of a cubin
    that it does not name are {}. None reads all.
    """
    built = manifest.read(folder)
    if not built:
        raise BuildError(
            f"no kernels in {folder}; `python -m cute_kernels build --out {folder}` puts them there"
        )
    entries = [entry for entry in built if only in key(entry)]
    if not entries:
        raise BuildError(f"no cubin's architecture and name hold '{only}'")
    result = {key(entry): (known or {}).get(key(entry), {}) for entry in entries}
    changed = [
        entry
        for entry in entries
        if known is None or result[key(entry)].get("cubin_sha256", "") not in ("", entry["cubin_sha256"])
    ]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # each waits for the disassembler
        for entry, read in zip(changed, threads.map(partial(figures, folder), changed), strict=True):
            result[key(entry)] = read
    return result


def key(entry: manifest.Entry) -> str:
    return f"{entry['arch']} {entry['name']}"


def dsl_version(folder: Path) -> str:
    """The DSL whose assembler made the cubins: figures of two assemblers are not compared."""
    return ", ".join(sorted({str(entry["dsl_version"]) for entry in manifest.read(folder)}))


def compare(name: str, old: Figures, new: Figures) -> list[Finding]:
    """What got worse in one cubin, and what changed otherwise.

    Worse is: more spills or local memory; fewer CTAs an SM (more registers, threads or shared memory alone are
    not); fewer stages; a loop with more instructions, beyond SLACK and at least one, unless it neither computes nor
    moves data; a kind of loop that is gone.
    Where a loop has a multiple or a fraction of its tensor-core instructions, it is held against as many times its
    instructions: unrolling is no worsening.
    """
    found = []
    for figure, sign in (("spill_bytes", 1), ("local_bytes", 1), ("ctas_per_sm", -1), ("stages", -1)):
        before, after = old[figure] or 0, new[figure] or 0
        if before != after:
            found.append(Finding(name, f"{figure} {before} -> {after}", (after - before) * sign > 0))
    for figure in ("registers", "shared_bytes", "threads"):
        if old[figure] != new[figure]:
            found.append(Finding(name, f"{figure} {old[figure]} -> {new[figure]}", False))
    for loop, before in old["loops"].items():
        if loop not in new["loops"]:
            kind = loop.rstrip(" 0123456789")
            gone = kind not in new["loops"]
            found.append(
                Finding(name, f"loop '{loop}' is gone{': none like it is left' if gone else ''}", gone)
            )
        elif before != new["loops"][loop]:
            found.append(compare_loop(name, loop, before, new["loops"][loop]))
    found += [
        Finding(name, f"loop '{loop}' is new: {after['instructions']} instructions", False)
        for loop, after in new["loops"].items()
        if loop not in old["loops"]
    ]
    return found


def compare_loop(name: str, loop: str, before: Figures, after: Figures) -> Finding:
    """How a loop changed, and whether it needs more instructions for the same work."""
    few, many = sorted((before.get("MMA", 0), after.get("MMA", 0)))
    unrolled = few > 0 and many % few == 0
    allowed = least_of(before) * (after["MMA"] / before["MMA"] if unrolled else 1.0)
    more = least_of(after) > allowed + max(1.0, SLACK * allowed)
    classes = [
        f"{kind} {before.get(kind, 0)} -> {after.get(kind, 0)}"
        for kind in dict.fromkeys([*before, *after])
        if before.get(kind, 0) != after.get(kind, 0)
    ]
    return Finding(
        name, f"loop '{loop}': {', '.join(classes)}", more and not loop.startswith(sass_loops.OTHER_ROLE)
    )


def compare_all(old: dict[str, Figures], new: dict[str, Figures]) -> list[Finding]:
    """Findings of all cubins; how many only one side has is noted for each architecture."""
    found = [f for name in new if name in old for f in compare(name, old[name], new[name])]
    for names, what in (
        (new.keys() - old.keys(), "not in the baseline yet"),
        (old.keys() - new.keys(), "not built"),
    ):
        for arch, count in sorted(Counter(name.split(" ")[0] for name in names).items()):
            found.append(Finding(arch, f"{count} kernels are {what}", False))
    return found


def read_baseline(path: Path) -> tuple[str, dict[str, Figures]]:
    """DSL version and figures of a baseline; ("", {}) where there is none.

    Raises BuildError for one of another format.
    """
    if not path.exists():
        return "", {}
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise BuildError(
            f"{path} has format {content.get('format')}, not {FORMAT}; delete it and use --write"
        )
    return content["dsl_version"], content["kernels"]


def write_baseline(path: Path, version: str, read: dict[str, Figures]) -> None:
    """Write a baseline, a line for each loop, so that a change of it reads well."""
    kernels = []
    for name, figures_ in sorted(read.items()):
        head = json.dumps({k: v for k, v in figures_.items() if k != "loops"})[1:-1]
        rows = [f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in figures_["loops"].items()]
        inner = ",\n".join(rows)
        kernels.append(f'  {json.dumps(name)}: {{{head}, "loops": {{\n{inner}\n  }}}}')
    body = ",\n".join(kernels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'{{\n "format": {FORMAT},\n "dsl_version": {json.dumps(version)},\n "kernels": {{\n{body}\n }}\n}}\n'
    )


def render(read: dict[str, Figures]) -> str:
    """A table with a row for each loop; a kernel's own figures stand in the row of its first.

    "/ 32 col": the least instructions for 32 columns of tensor memory, of a loop that reads such.
    """
    rows: list[list[object]] = []
    for name, of in sorted(read.items()):
        own = [of[k] for k in ("registers", "spill_bytes", "shared_bytes", "ctas_per_sm", "stages")]
        first: list[object] = [*name.split(" ", 1), *("-" if figure is None else figure for figure in own)]
        for loop, counts in of["loops"].items() or [("no loop", {"instructions": 0})]:
            total, columns = counts["instructions"], counts.get("tmem_columns")
            share = f"{counts['MMA'] / total:.1%}" if counts.get("MMA") else "-"
            per_columns = f"{32 * least_of(counts) / columns:.1f}" if columns else "-"
            rows.append([*first, loop, total, share, per_columns, *(counts.get(kind, 0) for kind in SHOWN)])
            first = [""] * len(first)
    return table.render([*HEADER, *SHOWN], rows)
