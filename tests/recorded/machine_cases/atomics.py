# ruff: noqa: E501 (lines of PTX)
"""atom and red of every operation and type, on global, shared and distributed shared memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .kernel import Case

WORDS: dict[int, type[np.unsignedinteger[Any]]] = {16: np.uint16, 32: np.uint32, 64: np.uint64}
HALVES: dict[str, tuple[int, ...]] = {
    "f16": (
        0,
        0x8000,
        1,
        0x8001,
        0x03FF,
        0x0400,
        0x7BFF,
        0xFBFF,
        0x7C00,
        0xFC00,
        0x7E00,
        0x7D01,
        0xFE07,
        0x3C00,
    ),
    "bf16": (
        0,
        0x8000,
        1,
        0x8001,
        0x007F,
        0x0080,
        0x7F7F,
        0xFF7F,
        0x7F80,
        0xFF80,
        0x7FC0,
        0x7F81,
        0xFFC3,
        0x3F80,
    ),
}
SINGLES: tuple[int, ...] = (
    0,
    1 << 31,
    1,
    0x80000001,
    0x007FFFFF,
    0x00800000,
    0x80800000,
    0x7F7FFFFF,
    0xFF7FFFFF,
    0x7F800000,
)
SINGLES += (0xFF800000, 0x7FC00000, 0x7F800001, 0xFFC12345, 0x3F800000, 0x00800001)
DOUBLES: tuple[int, ...] = (
    0,
    1 << 63,
    1,
    0x8000000000000001,
    0x000FFFFFFFFFFFFF,
    0x0010000000000000,
    0x7FEFFFFFFFFFFFFF,
)
DOUBLES += (
    0x7FF0000000000000,
    0xFFF0000000000000,
    0x7FF8000000000000,
    0x7FF0000000000001,
    0xFFF8123456789ABC,
)


def content(type: str, nbytes: int, seed: str) -> bytes:
    """Elements of a type: the special values of floating point among random ones; small integers among random ones."""
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    base = type.removesuffix("x2")
    if base in HALVES:
        special, kind, exponent = HALVES[base], WORDS[16], 0x3F80 if base == "bf16" else 0x3C00
        numbers = (
            rng.integers(0, 0x800, nbytes // 2) + exponent - 0x200 | rng.integers(0, 2, nbytes // 2) << 15
        )
    elif base == "f32":
        special, kind = SINGLES, WORDS[32]
        numbers = rng.normal(size=nbytes // 4).astype(np.float32).view(np.uint32)
    elif base == "f64":
        special, kind = DOUBLES, WORDS[64]
        numbers = rng.normal(size=nbytes // 8).view(np.uint64)
    else:
        kind = WORDS[int(base[1:])]
        special = (0, 1, 2, 3, 5, np.iinfo(kind).max, np.iinfo(kind).max // 2 + 1)
        numbers = rng.integers(
            0, np.iinfo(kind).max, nbytes // np.dtype(kind).itemsize, dtype=kind, endpoint=True
        )
    numbers = numbers.astype(kind)
    chosen = rng.random(len(numbers)) < 0.6
    picks = np.array(special, dtype=kind)[rng.integers(0, len(special), len(numbers))]
    return np.where(chosen, picks, numbers).astype(kind).tobytes()


def operations() -> Iterator[tuple[str, str]]:
    """(operation with its qualifiers, type) of scalar atomics."""
    for type in ("u32", "s32", "u64"):
        yield "add", type
    for type in ("u32", "s32", "u64", "s64"):
        yield "min", type
        yield "max", type
    for operation in ("and", "or", "xor"):
        yield operation, "b32"
        yield operation, "b64"
    yield "inc", "u32"
    yield "dec", "u32"
    yield from (("add", "f32"), ("add", "f64"))
    yield from (("add.noftz", t) for t in ("f16", "bf16", "f16x2", "bf16x2"))


def width(type: str) -> int:
    return {"f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32}.get(type) or int(type[1:])


def register(type: str, number: int) -> str:
    return {16: "%h", 32: "%r", 64: "%d"}[width(type)] + str(number)


def _body(opcode: str, instruction: str, type: str, count: int, space: str, cas: bool = False) -> str:
    nbytes = width(type) // 8
    step = nbytes * count
    names = [register(type, 20 + i) for i in range(count)]
    old = [register(type, 30 + i) for i in range(count)]
    group = (lambda x: x[0]) if count == 1 else (lambda x: "{" + ", ".join(x) + "}")
    body = f"    mul.wide.u32 %d5, %r3, {step};\n    add.s64 %d6, %d1, %d5;\n    add.s64 %d7, %d0, %d5;\n"
    body += "".join(f"    ld.global.b{width(type)} {n}, [%d6+{i * nbytes}];\n" for i, n in enumerate(names))
    at = "%d7"
    if space != "global":
        body += f"    mul.lo.u32 %r6, %r3, {step};\n    add.u32 %r7, %r1, %r6;\n"
        for i in range(count):
            cell = register(type, 39)
            body += f"    ld.global.b{width(type)} {cell}, [%d7+{i * nbytes}];\n    st.shared.b{width(type)} [%r7+{i * nbytes}], {cell};\n"
        at = "%r7"
        if space == "shared::cluster":
            body += "    barrier.cluster.arrive;\n    barrier.cluster.wait;\n    xor.b32 %r8, %r2, 1;\n"
            body += "    mapa.shared::cluster.u32 %r9, %r7, %r8;\n"
            at = "%r9"
    extra = ""
    if cas:
        extra = f", {register(type, 38)}"
        body += f"    ld.global.b{width(type)} {register(type, 38)}, [%d6+1024];\n"
    if opcode == "atom":
        body += f"    {instruction} {group(old)}, [{at}], {group(names)}{extra};\n"
        base = "%d7" if space != "shared::cluster" else "%d8"
        if space == "shared::cluster":
            body += "    mul.wide.u32 %d9, %r2, 1024;\n    add.s64 %d8, %d7, %d9;\n"
        body += "".join(
            f"    st.global.b{width(type)} [{base}+{1024 + i * nbytes}], {n};\n" for i, n in enumerate(old)
        )
    else:
        body += f"    {instruction} [{at}], {group(names)}{extra};\n"
    if space != "global":
        if space == "shared::cluster":
            body += "    barrier.cluster.arrive;\n    barrier.cluster.wait;\n"
            body += "    setp.ne.u32 %p1, %r2, 0;\n    @%p1 bra DONE;\n"
        for i in range(count):
            cell = register(type, 39)
            body += f"    ld.shared.b{width(type)} {cell}, [%r7+{i * nbytes}];\n    st.global.b{width(type)} [%d7+{i * nbytes}], {cell};\n"
        if space == "shared::cluster":
            body += "DONE:\n"
    return body


def _case(opcode: str, operation: str, type: str, count: int, space: str) -> Case:
    vector = f".v{count}" if count > 1 else ""
    cas = operation == "cas"
    instruction = f"{opcode}.{space}.{operation}{vector}.{type}"
    nbytes = 32 * count * width(type) // 8
    values, memory = content(type, nbytes, instruction + "1"), content(type, nbytes, instruction + "2")
    if cas:  # every other lane finds what it compares with
        old = np.frombuffer(memory, np.uint8).reshape(32, -1)
        values = np.where(
            np.arange(32)[:, None] % 2, old, np.frombuffer(values, np.uint8).reshape(32, -1)
        ).tobytes()
    source = values.ljust(1024, b"\0") + content(type, nbytes, instruction + "3") if cas else values
    return Case(
        instruction,
        _body(opcode, instruction, type, count, space, cas),
        out_words=512 + (256 if space == "shared::cluster" else 0),
        cluster=2 if space == "shared::cluster" else 1,
        source=source,
        start=memory,
    )


def scalars() -> Iterator[Case]:
    for space in ("global", "shared", "shared::cluster"):
        for operation, type in operations():
            for opcode in ("atom", "red"):
                if space == "shared::cluster" and opcode == "atom" and type in ("s32", "u64", "b32", "b64"):
                    continue
                yield _case(opcode, operation, type, 1, space)
        for type in ("b32", "b64"):
            yield _case("atom", "exch", type, 1, space)
        for type in ("b16", "b32", "b64"):
            yield _case("atom", "cas", type, 1, space)


def vectors() -> Iterator[Case]:
    for opcode in ("atom", "red"):
        for count in (2, 4):
            yield _case(opcode, "add", "f32", count, "global")
        for operation in ("add", "min", "max"):
            for type in ("f16", "bf16"):
                for count in (2, 4, 8):
                    yield _case(opcode, f"{operation}.noftz", type, count, "global")
            for type in ("f16x2", "bf16x2"):
                for count in (2, 4):
                    yield _case(opcode, f"{operation}.noftz", type, count, "global")


def contended() -> Iterator[Case]:
    """128 threads on 4 words: only what does not depend on the order is kept."""
    for space in ("global", "shared"):
        body = "    and.b32 %r5, %r0, 3;\n    ld.global.b32 %r10, [%d4];\n    mul.wide.u32 %d5, %r5, 4;\n"
        body += "    add.s64 %d6, %d0, %d5;\n    shl.b32 %r6, %r5, 2;\n    add.u32 %r7, %r1, %r6;\n    mov.b32 %r11, 0;\n"
        kinds = ("add.u32", "min.s32", "max.u32", "or.b32", "xor.b32", "inc.u32")
        for i, kind in enumerate(kinds):
            value = "0x7fffffff" if kind.startswith("inc") else "%r10"
            at = f"[%d6+{16 * i}]" if space == "global" else f"[%r7+{16 * i}]"
            if space == "shared":
                body += f"    setp.lt.u32 %p1, %r0, 4;\n    @%p1 st.shared.b32 {at}, %r11;\n    bar.sync 0;\n"
            body += f"    red.{space}.{kind} {at}, {value};\n"
            if space == "shared":
                body += f"    bar.sync 0;\n    ld.shared.b32 %r12, {at};\n    st.global.b32 [%d6+{16 * i}], %r12;\n"
        yield Case(f"contended red {space}", body, out_words=24, threads=128, start=bytes(96))


def qualified() -> Iterator[Case]:
    forms = [
        f"atom.{s}.{scope}.global.add.u32"
        for s in ("relaxed", "acquire", "release", "acq_rel")
        for scope in ("cta", "gpu", "sys")
    ]
    forms += ["atom.add.u32", "atom.relaxed.cluster.shared::cta.add.u32", "atom.acq_rel.cta.shared.exch.b32"]
    body = "    ld.global.b32 %r10, [%d4];\n    shl.b32 %r6, %r3, 2;\n    add.u32 %r7, %r1, %r6;\n    st.shared.b32 [%r7], %r10;\n"
    for i, form in enumerate(forms):
        at = "[%r7]" if "shared" in form else "[%d3]"
        body += f"    {form} %r11, {at}, %r10;\n    st.global.b32 [%d3+{128 * (i + 1)}], %r11;\n"
    yield Case("atom qualified", body, out_words=32 * (len(forms) + 1))


def cases() -> Iterator[Case]:
    for make in (scalars, vectors, contended, qualified):
        yield from make()
