"""What stands behind each instruction form of a folder of built kernels.

    python -m tests.coverage [FOLDER]        (the folder of cubins and PTX; "build" by default)

lists every form (opcode and modifiers) in the PTX, how often it occurs, and what says that the emulator executes it
rightly: a recording of an H200 that the tests replay, two independent witnesses for what no machine here has, or a
named exception. The exit status is 1 if a form has none of these.
"""

from __future__ import annotations

import collections
import itertools
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

import numpy as np

from cute_kernels.emulator.ptx import parse
from tests.recorded import matrix_cases, tensor_copy_kernels, wgmma_cases
from tests.recorded.machine_cases import cases

TESTS = pathlib.Path(__file__).parent
ALU = TESTS / "recorded" / "alu.npz"

# What no machine here has: beginnings of forms, and the tests that compare two derivations (the manual's tables, and
# the DSL's own layout functions or torch's arithmetic).
WITNESSED = {
    "tcgen05.mma": "test_umma.py test_umma_descriptors.py test_umma_operands.py test_umma_scales.py",
    "tcgen05.ld": "test_tmem_access.py",
    "tcgen05.st": "test_tmem_access.py",
    "tcgen05.cp": "test_tmem_access.py test_umma_scales.py",
    "cvt.rn.satfinite.e2m1x2.f32": "test_cvt.py",
    "add.rn.f32.bf16": "test_alu_float.py test_mixed_additions.py",
    "clusterlaunchcontrol": "test_launch_control.py",
    "max.NaN.abs.f32": "test_alu_float.py test_three_inputs.py",
    **dict.fromkeys(
        (
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.cta_group::2",
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.cta_group::2",
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
            ".cta_group::2",
        ),
        "test_pair_copies.py",
    ),
    **dict.fromkeys(
        ("add.f32x2", "add.rn.f32x2", "mul.f32x2", "mul.rn.f32x2", "fma.rn.f32x2"), "test_packed_singles.py"
    ),
}
# What gives no data that could be compared, and what stands behind it instead.
EXCEPTIONS = {
    "tcgen05.alloc": "bookkeeping after the manual; losing an allocation is a planted bug",
    "tcgen05.dealloc": "bookkeeping after the manual; leaving it out is a planted bug",
    "tcgen05.relinquish_alloc_permit": "bookkeeping after the manual",
    "tcgen05.commit": "order alone; leaving one out is a planted bug",
    "tcgen05.wait": "order alone; leaving one out is a planted bug",
    "tcgen05.fence": "order alone; leaving one out is a planted bug",
}
_SAME_BITS = (
    "mov",
    "selp",
    "ld",
    "st",
    "setp.eq",
    "setp.ne",
    "shl",
)  # signedness and kind of type change nothing
_SAME_SUMS = ("add", "sub", "mul.lo", "mad.lo")  # nor does signedness here
_NO_BYTES = re.compile(r"L[12]::.*|nc|uni|tile|weak|to|volatile")  # qualifiers that change no byte


def canonical(form: str) -> str:
    """The form under which equivalent spellings meet."""
    opcode, *modifiers = form.split(".")
    modifiers = ["shared" if m == "shared::cta" else m for m in modifiers if not _NO_BYTES.fullmatch(m)]
    name = ".".join([opcode, *modifiers])
    if modifiers and re.fullmatch(r"[usbf]\d+", modifiers[-1]):
        start, bits = ".".join([opcode, *modifiers[:-1]]), modifiers[-1][1:]
        wide_load = opcode == "ld" and modifiers[-1][0] == "s" and bits in ("8", "16")
        if not wide_load and any(start == s or start.startswith(s + ".") for s in _SAME_BITS):
            return f"{start}.b{bits}"
        if start in _SAME_SUMS and modifiers[-1][0] in "us":
            return f"{start}.u{bits}"
    return name


def forms_of(ptx: str) -> collections.Counter[str]:
    """How often each form occurs in a module."""
    return collections.Counter(i.name for kernel in parse(ptx).kernels.values() for i in kernel.instructions)


def recorded() -> dict[str, str]:
    """Each recorded form, canonical, with the recording."""
    found: dict[str, str] = {}

    def add(forms: Iterable[str], record: str) -> None:
        for form in forms:
            found.setdefault(canonical(form), record)

    add(_alu_forms(), "alu.npz")
    for case in cases():
        add(forms_of(case.text), "machine.jsonl.gz")
    for opcode, text, _ in matrix_cases.cases():
        add(forms_of(matrix_cases.kernel(opcode, text)), "matrix_instructions.jsonl.gz")
    for each in wgmma_cases.cases():
        add(forms_of(wgmma_cases.kernel(each)), "wgmma.jsonl.gz")
    add(forms_of(tensor_copy_kernels.kernels_ptx()), "tensor_copies.jsonl.gz")
    return found


def _alu_forms() -> Iterator[str]:
    if not ALU.exists():
        return
    from tests.recorded import alu_forms

    with np.load(ALU) as record:
        names = set(record["names"].tolist())
    for form in alu_forms.forms():
        if form.name in names:
            yield from re.findall(r"(?:^|[;{}])\s*(?:@!?%\w+\s+)?([a-z][\w:]*(?:\.[\w:]+)+)", form.body)


def behind(form: str, records: dict[str, str]) -> str | None:
    """What stands behind a form; None if nothing does."""
    if canonical(form) in records:
        return f"H200: {records[canonical(form)]}"
    for start, tests in WITNESSED.items():
        if form == start or form.startswith(start + "."):
            return f"two witnesses: {tests}"
    for start, reason in EXCEPTIONS.items():
        if form == start or form.startswith((start + ".", start + "::")):
            return f"exception: {reason}"
    return None


def built(folder: pathlib.Path) -> collections.Counter[str]:
    """The forms in all PTX below a folder."""
    texts = [path.read_text() for path in sorted(folder.rglob("*.ptx"))]
    if not texts:
        raise SystemExit(f"no PTX below {folder}; run python -m cute_kernels build --out {folder} first")
    return collections.Counter(itertools.chain.from_iterable(forms_of(text).elements() for text in texts))


def main(arguments: list[str]) -> int:
    counts, records = built(pathlib.Path(arguments[0] if arguments else "build")), recorded()
    uncovered = []
    for form in sorted(counts):
        what = behind(form, records)
        print(f"{form:88} {counts[form]:6}  {what or 'NOTHING'}")
        if what is None:
            uncovered.append(form)
    print(f"{len(counts)} forms, {len(uncovered)} with nothing behind them")
    return 1 if uncovered else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
