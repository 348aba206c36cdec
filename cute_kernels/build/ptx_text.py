"""The PTX that goes beside a cubin: relative paths, and checks against the variant and the plain compile."""

from __future__ import annotations

import re
from pathlib import Path

from cute_kernels.build.errors import BuildError
from cute_kernels.build.variant import Variant

FILE = re.compile(r'^(\s*\.file\s+\d+\s+")([^"]+)(".*)$', re.M)
ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)([^{]*)\{", re.S)
PARAM = re.compile(r"\s*\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s.*?(?:\[(\d+)\])?\s*")
BYTES = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "b32": 4, "u32": 4, "s32": 4}
BYTES |= {"f32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8}
DSL_FOLDER = "nvidia_cutlass_dsl"


def relative_paths(ptx: str, roots: tuple[Path, ...]) -> str:
    """The same PTX with each `.file` path relative to the deepest root it lies under, so that the checkout's
    place does not show; the DSL's own sources keep the path from its package folder on.

    Raises BuildError for a file under no root.
    """

    def shorten(match: re.Match[str]) -> str:
        return match[1] + relative(Path(match[2]), roots) + match[3]

    return FILE.sub(shorten, ptx)


def relative(path: Path, roots: tuple[Path, ...]) -> str:
    """`path` from its root on, with forward slashes."""
    if not path.is_absolute():
        return path.as_posix()
    for root in sorted(roots, key=lambda root: -len(root.parts)):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    if DSL_FOLDER in path.parts:
        return Path(*path.parts[path.parts.index(DSL_FOLDER) :]).as_posix()
    raise BuildError(
        f"the PTX names {path}, which lies neither under {' nor '.join(map(str, roots))} nor in the DSL"
    )


def without_lines(ptx: str) -> list[str]:
    """The lines of the PTX that are not about source lines or debugging, stripped."""
    code = ptx.split("\n\t.section\t.debug", 1)[0]
    lines = (line.strip() for line in code.splitlines())
    return [line for line in lines if line and not line.startswith((".loc", ".file", "//"))]


def check_same_code(plain: str, with_lines: str) -> None:
    """Refuse where line information changed the code: the emulator would run another kernel than the GPU."""
    for ours, theirs in zip(without_lines(plain), without_lines(with_lines), strict=False):
        if ours != theirs:
            raise BuildError(f"line information changes the code: {ours!r} became {theirs!r}")
    if len(without_lines(plain)) != len(without_lines(with_lines)):
        raise BuildError("line information changes the number of instructions")


def check_interface(ptx: str, variant: Variant, entry: str) -> None:
    """Refuse where the compiled parameters or the block are not what the variant tells the host."""
    entries = ENTRY.findall(ptx)
    if [name for name, _, _ in entries] != [entry]:
        raise BuildError(f"the PTX's kernels {[name for name, _, _ in entries]} are not the cubin's, {entry}")
    _, params, directives = entries[0]
    compiled = [param_bytes(line) for line in params.split(",") if line.strip()]
    stated = [param.nbytes for param in variant.params]
    if compiled != stated:
        raise BuildError(
            f"the variant states parameters of {stated} bytes, {[param.name for param in variant.params]}; "
            f"the compiled kernel has {compiled}"
        )
    for directive, value in (("reqntid", variant.block), ("reqnctapercluster", variant.cluster)):
        match = re.search(rf"\.{directive}\s+([\d, ]+)", directives)
        compiled_value = tuple(map(int, match[1].split(","))) if match else value
        if (*compiled_value, 1, 1)[:3] != value:
            raise BuildError(
                f"the variant states {value} for .{directive}; the compiled kernel has {compiled_value}"
            )


def param_bytes(declaration: str) -> int:
    """Bytes of one `.param` declaration of an entry."""
    match = PARAM.fullmatch(declaration)
    if match is None or match[1] not in BYTES:
        raise BuildError(f"the kernel parameter {declaration.strip()!r} is of no known type")
    return BYTES[match[1]] * int(match[2] or 1)
