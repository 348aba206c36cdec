# ruff: noqa: E501 (lines of PTX)
"""ld and st of every width and vector in every state space."""

from __future__ import annotations

from collections.abc import Iterator

from .kernel import Case

TYPES = ("b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64")
SPACES = ("global", "shared", "shared::cta", "local", "generic", "generic shared", "generic local")
ROW = 512  # bytes of `out` that one form fills: 16 a lane


def bits(type: str) -> int:
    return int(type[1:])


def registers(width: int, count: int, first: int = 10) -> list[str]:
    return [f"%{ {16: 'h', 32: 'r', 64: 'd'}[width] }{first + i}" for i in range(count)]


def vector(names: list[str]) -> str:
    return names[0] if len(names) == 1 else "{" + ", ".join(names) + "}"


def forms() -> Iterator[tuple[str, str, int]]:
    """(vector modifier, type, register width) of every load."""
    for type in TYPES:
        for count in (1, 2, 4):
            if bits(type) * count > 128:
                continue
            for width in (16, 32, 64):
                fits = width == bits(type) if type[0] in "f" else width >= bits(type)
                if fits:
                    yield "" if count == 1 else f".v{count}", type, width


def _prepare(space: str) -> tuple[str, str, str]:
    """(PTX that makes %d10 the lane's 32 bytes in a space, the space as a modifier, the address register)."""
    address = "    shl.b32 %r5, %r3, 5;\n    cvt.u64.u32 %d9, %r5;\n"
    if space in ("global", "generic"):
        return address + "    add.s64 %d10, %d0, %d9;\n", ".global" if space == "global" else "", "%d10"
    if "shared" in space:
        body = (
            address
            + "    add.u32 %r6, %r1, %r5;\n    cvt.u64.u32 %d8, %r6;\n    cvta.shared.u64 %d10, %d8;\n"
        )
        return body, "" if "generic" in space else f".{space}", "%d10" if "generic" in space else "%r6"
    body = "    mov.b64 %d8, frame;\n    cvta.local.u64 %d10, %d8;\n"
    return body, "" if "generic" in space else ".local", "%d10" if "generic" in space else "%d8"


def loads_and_stores() -> Iterator[Case]:
    """Each lane stores 16 bytes of `in` to its place with one form and loads them with the same form."""
    for space in SPACES:
        prepare, modifier, at = _prepare(space)
        groups: dict[str, list[tuple[str, str, int]]] = {}
        for form in forms():
            groups.setdefault(form[1], []).append(form)
        if space in ("generic", "shared", "generic shared", "generic local"):
            groups = {t: f for t, f in groups.items() if t in ("s8", "u16", "b32", "f64")}
        for type, members in groups.items():
            body = (
                prepare
                + "    mul.wide.u32 %d5, %r3, 16;\n    add.s64 %d6, %d1, %d5;\n    mul.wide.u32 %d5, %r3, 8;\n"
            )
            row = 4096 if space in ("global", "generic") else 0
            for vec, _, width in members:
                count = int(vec[2:]) if vec else 1
                names = registers(width, count, 20)
                body += f"    ld.global{vec}.{type} {vector(names)}, [%d6];\n"
                body += f"    st{modifier}{vec}.{type} [{at}], {vector(names)};\n"
                loaded = registers(width, count, 30)
                body += f"    ld{modifier}{vec}.{type} {vector(loaded)}, [{at}];\n"
                # The whole register tells the extension; a fold of the elements tells their order.
                body += "    mov.b64 %d40, 0;\n"
                for name in loaded:
                    wide = name
                    if width != 64:
                        body += f"    cvt.u64.u{width} %d41, {name};\n"
                        wide = "%d41"
                    body += (
                        f"    mul.lo.u64 %d40, %d40, 0x9E3779B97F4A7C15;\n    xor.b64 %d40, %d40, {wide};\n"
                    )
                body += f"    add.s64 %d42, %d0, %d5;\n    st.global.b64 [%d42+{row}], %d40;\n"
                row += 256
            yield Case(
                f"ld st {space} {type}",
                body,
                out_words=row // 4,
                locals="    .local .align 16 .b8 frame[64];\n",
            )


def parameters() -> Iterator[Case]:
    body, row = "", 0
    for vec, type, width in forms():
        count = int(vec[2:]) if vec else 1
        loaded = registers(width, count, 30)
        offset = row // 8 % 7 * 16
        body += f"    ld.param{vec}.{type} {vector(loaded)}, [p_bytes+{offset}];\n    mov.b64 %d40, 0;\n"
        for name in loaded:
            wide = name
            if width != 64:
                body += f"    cvt.u64.u{width} %d41, {name};\n"
                wide = "%d41"
            body += f"    mul.lo.u64 %d40, %d40, 0x9E3779B97F4A7C15;\n    xor.b64 %d40, %d40, {wide};\n"
        body += f"    st.global.b64 [%d0+{row}], %d40;\n"
        row += 8
    yield Case("ld param", body, out_words=row // 4)


def qualified() -> Iterator[Case]:
    """Qualifiers that move the same bytes."""
    loads = (
        "ca",
        "cg",
        "cs",
        "lu",
        "cv",
        "nc",
        "L1::no_allocate",
        "L1::evict_last",
        "L2::128B",
        "nc.L1::no_allocate",
    )
    forms_ = [f"ld.global.{q}.u32" for q in loads]
    forms_ += ["ld.volatile.global.u32", "ld.weak.global.u32", "ldu.global.u32"]
    forms_ += [
        f"ld.{s}.{scope}.global.u32"
        for s in ("relaxed", "acquire")
        for scope in ("cta", "cluster", "gpu", "sys")
    ]
    body = ""
    for i, form in enumerate(forms_):
        body += f"    {form} %r10, [%d4+{128 * (i % 8)}];\n    st.global.b32 [%d3+{128 * i}], %r10;\n"
    yield Case("ld qualified", body, out_words=32 * len(forms_))
    stores = [f"st.global.{q}.b32" for q in ("wb", "cg", "cs", "wt", "L1::no_allocate")]
    stores += ["st.volatile.global.b32", "st.weak.global.b32"]
    stores += [
        f"st.{s}.{scope}.global.b32"
        for s in ("relaxed", "release")
        for scope in ("cta", "cluster", "gpu", "sys")
    ]
    body = "".join(
        f"    ld.global.u32 %r10, [%d4+{128 * (i % 8)}];\n    {form} [%d3+{128 * i}], %r10;\n"
        for i, form in enumerate(stores)
    )
    yield Case("st qualified", body, out_words=32 * len(stores))
    table = ", ".join(str((i * 2654435761) % 2**32) for i in range(32))
    declarations = (
        f".const .align 4 .u32 table[32] = {{{table}}};\n.global .align 4 .u32 other[32] = {{{table}}};\n"
    )
    body = "    mov.u64 %d10, table;\n    mul.wide.u32 %d11, %r3, 4;\n    add.s64 %d12, %d10, %d11;\n"
    body += "    ld.const.u32 %r10, [%d12];\n    mov.u64 %d10, other;\n    add.s64 %d12, %d10, %d11;\n"
    body += "    ld.global.u32 %r11, [%d12];\n    ld.const.v2.u32 {%r12, %r13}, [table+8];\n"
    body += "    st.global.b32 [%d3], %r10;\n    st.global.b32 [%d3+128], %r11;\n    st.global.b32 [%d3+256], %r13;\n"
    yield Case("module variables", body, out_words=96, declarations=declarations)
    body = "    mov.b64 %d8, frame;\n    cvta.local.u64 %d10, %d8;\n    cvt.u64.u32 %d11, %r1;\n"
    body += "    cvta.shared.u64 %d12, %d11;\n    mov.b32 %r20, 0;\n    st.local.u32 [frame], %r20;\n"
    for i, (space, register) in enumerate(
        (s, r)
        for s in ("global", "shared", "local", "const", "shared::cta", "shared::cluster")
        for r in ("%d0", "%d10", "%d12")
    ):
        body += f"    isspacep.{space} %p1, {register};\n    selp.b32 %r10, 1, 0, %p1;\n    st.global.b32 [%d3+{128 * i}], %r10;\n"
    yield Case("isspacep", body, out_words=32 * 18, locals="    .local .align 16 .b8 frame[64];\n")


def cases() -> Iterator[Case]:
    for make in (loads_and_stores, parameters, qualified):
        yield from make()
