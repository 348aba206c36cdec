"""Bugs planted in the GEMM's PTX are found: the emulator reports a fault, or the result is wrong.

The kernel has two stages and one tile needs five K tiles, so every barrier goes through several phases; M and N leave
tails, and a CTA has several tiles.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest

import sm100
from cute_kernels.emulator import EmulationError
from sm100.shape import Shape
from tests.emulate.direct import compile_ptx, gemm, relative_error

SHAPE = Shape(tile_n=64, stages=2, d_dtype="f32", accumulate=False)
VARIANT = dataclasses.replace(sm100.gemm_variant(SHAPE), name="two_stages")
PROBLEM = (200, 136, 1056)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def ptx() -> str:
    return compile_ptx(VARIANT)


def replace_nth(
    text: str, pattern: str, replacement: str | Callable[[re.Match[str]], str], nth: int = 0
) -> str:
    """The text with the nth match (negative: from the end) replaced; there must be one."""
    matches = list(re.finditer(pattern, text))
    assert matches and -len(matches) <= nth < len(matches), (
        f"{pattern!r} has {len(matches)} matches, wanted {nth}"
    )
    match = matches[nth]
    new = replacement if isinstance(replacement, str) else replacement(match)
    changed = text[: match.start()] + new + text[match.end() :]
    assert changed != text
    return changed


def drop(text: str, pattern: str, nth: int = 0) -> str:
    return replace_nth(text, pattern, "", nth)


def _bytes_of_expect(text: str, extra: int) -> str:
    """Changes the byte count that the operand load expects."""
    expected = SHAPE.a_bytes + SHAPE.b_bytes
    return replace_nth(
        text, rf"mov\.b32 \t(%r\d+), {expected};", lambda m: f"mov.b32 \t{m[1]}, {expected + extra};"
    )


def _pass_wait(text: str, barrier: str) -> str:
    """Makes the first wait on a barrier pass at once: the loop that retries it is left."""
    at = text.index(barrier)
    loop = text.index("mbarrier.try_wait", at)
    end = text.index(";", loop) + 1
    predicate = re.search(r"(%p\d+),", text[loop:end])
    assert predicate
    return text[:loop] + f"mov.pred {predicate[1]}, -1;" + text[end:]


def _address_of_wait(text: str, offset: int) -> str:
    """The register definition that a wait on the barriers from a shared offset on uses."""
    match = re.search(rf"add\.s32 \t%r\d+, %r\d+, {offset};", text)
    assert match, offset
    return match[0]


def _descriptor(text: str, flip: int) -> str:
    """Flips a bit of the first MMA's instruction descriptor."""
    used = re.search(r"tcgen05\.mma[^;]*\[%r\d+\], %rd\d+, %rd\d+, (%r\d+),", text)
    assert used
    return replace_nth(
        text,
        rf"(or\.b32 \t{re.escape(used[1])}, %r\d+, )(\d+);",
        lambda m: f"{m[1]}{int(m[2]) ^ flip};",
    )


def _next_row(text: str) -> str:
    """Shifts the row that the second operand load starts at."""
    pattern = r"(cp\.async\.bulk\.tensor\.2d\.shared::cta[^;]*\{%r\d+, )(%r\d+)\}"
    loads = list(re.finditer(pattern, text))
    used = loads[1]
    row = used[2]
    line = text.rindex("\n", 0, used.start()) + 1
    return text[:line] + f"\tadd.s32 {row}, {row}, 1;\n" + text[line:]


def _all_lanes_but_one(text: str, issued: str) -> str:
    """Turns the elected lane's guard of an instruction round."""
    guard = text.rindex("@%p", 0, text.index(issued))
    return text[:guard] + "@!" + text[guard + 1 :]


def _no_drain(text: str) -> str:
    """Lets both loading warps end without waiting for the empty barriers: the third and the fifth wait."""
    for nth in (4, 2):
        text = replace_nth(
            text, r"mbarrier\.try_wait[^,;]* (%p\d+),[^;]*;", lambda m: f"mov.pred {m[1]}, -1;", nth
        )
    return text


_LAYOUT = SHAPE.stages * SHAPE.stage_bytes + SHAPE.staging_bytes
_SCALES, _FULL, _EMPTY = (_LAYOUT + 8 * SHAPE.stages * i for i in range(3))

BUGS: dict[str, Callable[[str], str]] = {
    "expects 16 bytes too many": lambda t: _bytes_of_expect(t, 16),
    "expects 16 bytes too few": lambda t: _bytes_of_expect(t, -16),
    "load does not wait for empty": lambda t: _pass_wait(t, _address_of_wait(t, _EMPTY)),
    "no tcgen05.wait::ld": lambda t: drop(t, r"tcgen05\.wait::ld\.sync\.aligned;"),
    "no proxy fence before the store": lambda t: drop(t, r"fence\.proxy\.async\.shared::cta;"),
    "no proxy fence after the transpose": lambda t: drop(t, r"fence\.proxy\.async\.shared::cta;", -1),
    "scale columns swapped": lambda t: replace_nth(
        t, r"(tcgen05\.mma[^;]*\[%r\d+\], %rd\d+, %rd\d+, %r\d+, )\[(%r\d+)\], \[(%r\d+)\]",
        lambda m: f"{m[1]}[{m[3]}], [{m[2]}]",
    ),
    "commit to the wrong barrier": lambda t: replace_nth(
        t, rf"(add\.s32 \t(%r\d+), %r\d+, ){_EMPTY};(?=[^\[]*tcgen05\.commit[^\[]*\[\2\])", lambda m: f"{m[1]}{_FULL};"
    ),
    "commit dropped": lambda t: drop(t, r"tcgen05\.commit[^;]*;"),
    "last commit dropped": lambda t: drop(t, r"tcgen05\.commit[^;]*;", -1),
    "tensor memory not given back": lambda t: drop(t, r"tcgen05\.dealloc[^;]*;"),
    "no fence.mbarrier_init": lambda t: drop(t, r"fence\.mbarrier_init[^;]*;"),
    "no barrier after the setup": lambda t: drop(t, r"barrier\.sync[^;]*;"),
    "no barrier before tensor memory is given back": lambda t: drop(t, r"barrier\.sync[^;]*;", -1),
    "no fence before the accumulator is handed back": lambda t: drop(t, r"tcgen05\.fence::before_thread_sync;", 1),
    "no fence before the accumulator is read": lambda t: drop(t, r"tcgen05\.fence::after_thread_sync;", 1),
    "store does not wait for its staging buffer": lambda t: drop(t, r"cp\.async\.bulk\.wait_group\.read[^;]*;"),
    "does not wait for its last stores": lambda t: drop(t, r"cp\.async\.bulk\.wait_group [^;]*;"),
    "wrong N in the instruction descriptor": lambda t: _descriptor(t, 1 << 17),
    "reserved bit in the instruction descriptor": lambda t: _descriptor(t, 1 << 6),
    "box of B one row further": _next_row,
    "no warp barrier before the staging buffer is written": lambda t: drop(t, r"bar\.warp\.sync[^;]*;"),
    "no warp barrier before the store": lambda t: drop(t, r"bar\.warp\.sync[^;]*;", 1),
    "no warp barrier before scale words are overwritten": lambda t: drop(t, r"bar\.warp\.sync[^;]*;", -2),
    "no warp barrier before scale atoms are announced": lambda t: drop(t, r"bar\.warp\.sync[^;]*;", -1),
    "31 lanes store": lambda t: _all_lanes_but_one(t, "cp.async.bulk.tensor.2d.global"),
    "ends before the last commits have arrived": _no_drain,
    "loads do not wait for earlier grids": lambda t: drop(t, r"griddepcontrol\.wait;", 1),
}  # fmt: skip


@pytest.mark.parametrize("schedule", ["eager", "lazy", "random"])
def test_the_kernel_itself_is_right(ptx: str, schedule: str) -> None:
    result, exact, report = gemm(VARIANT, ptx, *PROBLEM, schedule)
    assert relative_error(result, exact) < TOLERANCE
    assert report.warnings == []


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(ptx: str, bug: str) -> None:
    broken = BUGS[bug](ptx)
    found = []
    for schedule in ("eager", "lazy", "random"):
        try:
            result, exact, report = gemm(VARIANT, broken, *PROBLEM, schedule)
        except EmulationError as fault:
            found.append(fault.kind)
        else:
            found += report.warnings
            if relative_error(result, exact) >= TOLERANCE:
                found.append("wrong result")
    assert found, f"{bug!r} passes under every schedule"


@pytest.mark.parametrize("warp", ["LOAD", "MULTIPLY", "store"])
def test_a_wrong_first_phase_is_found(warp: str) -> None:
    """Planted in the source: a role that starts with the other parity."""
    from cute_kernels.device import ring

    original = ring.filler, ring.reader
    try:
        if warp == "store":
            ring.reader = ring.filler
        else:
            ring.filler = ring.reader
        broken = compile_ptx(dataclasses.replace(VARIANT, name=f"phase_{warp}"))
    finally:
        ring.filler, ring.reader = original
    with pytest.raises(EmulationError):
        gemm(VARIANT, broken, *PROBLEM, "random")


def test_one_stage_too_many_is_found() -> None:
    """Compiled for three stages, launched with the shared memory of two."""
    deeper = dataclasses.replace(SHAPE, stages=3)
    ptx = compile_ptx(dataclasses.replace(sm100.gemm_variant(deeper), name="three_stages"))
    with pytest.raises(EmulationError, match="out-of-range"):
        gemm(VARIANT, ptx, *PROBLEM)
