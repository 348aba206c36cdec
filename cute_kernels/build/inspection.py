"""What each cubin of a folder takes and holds, from the manifest and from its machine code."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from cute_kernels import table
from cute_kernels.build import manifest, sass
from cute_kernels.build.errors import BuildError
from cute_kernels.build.families import matches

RESOURCES = ("arch", "kernel", "regs", "spill B", "local B", "shared B", "stages", "threads", "instr")


def inspect(folder: Path, archs: tuple[str, ...] | None = None, only: str | None = None) -> str:
    """A table of the kernels in a folder that `build` wrote: resources, then the instruction mix.

    shared B: dynamic and static bytes a CTA; stages: of the main loop's ring, "-" where it has none;
    instr: instructions in the code; the columns after it count them by class.
    """
    entries = [
        entry
        for entry in manifest.read(folder)
        if (archs is None or entry["arch"] in archs) and matches(only, entry["kernel"], entry["name"])
    ]
    if not entries:
        raise BuildError(
            f"no such kernel in {folder}; `python -m cute_kernels build --out {folder}` puts them there"
        )
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # each waits for a disassembler
        rows = list(threads.map(partial(row, folder), entries))
    return table.render([*RESOURCES, *sass.CLASSES, "other"], rows)


def row(folder: Path, entry: manifest.Entry) -> list[object]:
    """One kernel's cells."""
    if not manifest.files_intact(folder, entry, with_ptx=False):
        raise BuildError(
            f"{folder / entry['cubin']} is missing or not the file that the manifest records; build again"
        )
    instructions = sass.disassemble(folder / entry["cubin"])
    mix = sass.mix(instructions)
    x, y, z = entry["block"]
    return [
        entry["arch"],
        entry["name"],
        entry["registers"],
        entry["spill_bytes"],
        entry["local_bytes"],
        entry["dynamic_shared"] + entry["static_shared"],
        entry["config"].get("stages", "-"),
        x * y * z,
        len(instructions),
        *(mix[name] for name in [*sass.CLASSES, "other"]),
    ]
