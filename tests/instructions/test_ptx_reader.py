"""The PTX reader: every kind of statement and operand that compilers write, and refusals that name line and text."""

from __future__ import annotations

import struct

import pytest

from cute_kernels.emulator.ptx import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Location,
    Negated,
    Pair,
    Param,
    PtxError,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
    parse,
)

HEAD = ".version 9.4\n.target sm_100a, debug\n.address_size 64\n"
REGISTERS = ".reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>;\n"


def body(text: str, declarations: str = REGISTERS) -> Kernel:
    return parse(f"{HEAD}.visible .entry k()\n{{\n{declarations}{text}\n}}\n").kernels["k"]


def one(text: str) -> Instruction:
    (instruction,) = body(text).instructions
    return instruction


def name(kernel: Kernel, operand: object) -> str:
    assert isinstance(operand, Register)
    return kernel.register_names[operand.index]


def test_module() -> None:
    module = parse(HEAD + ".visible .entry k() { ret; }")
    assert (module.version, module.target) == ("9.4", "sm_100a")
    assert [i.name for i in module.kernels["k"].instructions] == ["ret"]


def test_parameters_and_directives() -> None:
    kernel = parse(
        HEAD
        + """
        .visible .entry k(
            .param .align 64 .b8 k_param_0[128],
            .param .u64 .ptr .global .align 1 k_param_1,
            .param .u64 .ptr .align 16 k_param_2,
            .param .f32 k_param_3,
            .param .align 4 .b8 k_param_4[12] )
        .maxntid 256, 1, 1
        .reqntid 128
        .minnctapersm 2
        .maxnreg 64
        .explicitcluster
        .reqnctapercluster 2, 1, 1
        { ret; }"""
    ).kernels["k"]
    assert kernel.params == [
        Param("k_param_0", 128, 64, "b8"),
        Param("k_param_1", 8, 8, "u64"),
        Param("k_param_2", 8, 8, "u64"),
        Param("k_param_3", 4, 4, "f32"),
        Param("k_param_4", 12, 4, "b8"),
    ]
    assert (kernel.maxntid, kernel.reqntid, kernel.cluster) == ((256, 1, 1), (128, 1, 1), (2, 1, 1))
    assert kernel.directives["maxnreg"] == (64,)
    assert kernel.directives["minnctapersm"] == (2,)
    assert "explicitcluster" in kernel.directives


def test_variables() -> None:
    module = parse(
        HEAD
        + """
        .extern .shared .align 1024 .b8 dynamic[];
        .shared .align 16 .b8 fixed[48];
        .shared .align 4 .u32 unmentioned;
        .global .align 4 .u32 words[4] = {1, 0x2U, -3};
        .const .align 8 .f64 number = 0d3FF8000000000000;
        .global .align 4 .f32 floats[2][2] = {{0f3F800000, 2.5}, {-1.0, 0}};
        .visible .global .align 8 .u64 pointers[2] = {generic(words)+8, number};
        .global .align 1 .b8 text[] = {104, 105, 0};
        .global .v4 .f32 vector;
        .visible .entry k()
        {
            .local .align 16 .b8 __local_depot0[64];
            .shared .align 8 .b64 inner;
            .reg .b64 %rd<4>;
            mov.u64 %rd1, fixed;
            mov.u64 %rd2, dynamic;
            mov.u64 %rd3, words+8;
        }"""
    )
    kernel = module.kernels["k"]
    assert kernel.shared == {"inner": (8, 8), "fixed": (48, 16)}
    assert kernel.dynamic_shared == {"dynamic": 1024}
    assert kernel.local == {"__local_depot0": (64, 16)}
    assert module.variables["words"].initial == struct.pack("<IIiI", 1, 2, -3, 0)
    assert module.variables["number"].initial == struct.pack("<d", 1.5)
    assert module.variables["number"].space == "const"
    assert module.variables["floats"].initial == struct.pack("<4f", 1.0, 2.5, -1.0, 0.0)
    assert module.variables["pointers"].addresses == ((0, 8, "words", 8, True), (8, 8, "number", 0, False))
    assert module.variables["text"].initial == b"hi\0"
    assert (module.variables["vector"].nbytes, module.variables["vector"].align) == (16, 16)
    assert kernel.instructions[2].operands[1] == Symbol("words", 8)


def test_variables_inside_a_function_that_repeat_a_name() -> None:
    module = parse(
        HEAD
        + """.entry k() { .reg .b64 %a;
        { .shared .b32 x; .global .b32 y; mov.u64 %a, x; }
        { .shared .b64 x; .global .b64 y; mov.u64 %a, x; mov.u64 %a, y; } }"""
    )
    first, second, third = module.kernels["k"].instructions
    assert first.operands[1] == Symbol("x")
    assert second.operands[1] != first.operands[1]
    assert sorted(module.kernels["k"].shared.values()) == [(4, 4), (8, 8)]
    assert isinstance(third.operands[1], Symbol)
    assert module.variables[third.operands[1].name].nbytes == 8


def test_registers_enter_the_file_when_they_are_first_named() -> None:
    kernel = body("mov.b32 %r7, %r3;\nmov.f32 %f1, %f1;")
    assert kernel.register_names == ["%r7", "%r3", "%f1"]
    assert kernel.registers == ["b32", "b32", "f32"]


def test_immediates() -> None:
    def operand(text: str) -> Immediate:
        found = one(f"mov.b64 %rd1, {text};").operands[1]
        assert isinstance(found, Immediate)
        return found

    assert operand("-1").value("u32") == 0xFFFFFFFF
    assert operand("0xFFFFFFFFU").value("s64") == 0xFFFFFFFF
    assert operand("12U").value("u32") == 12
    assert operand("017").value("u32") == 15
    assert operand("0b101").value("u32") == 5
    assert operand("0f3F800000").value("f32") == 0x3F800000
    assert operand("0F3F800000").value("b32") == 0x3F800000
    assert operand("0f3F800000").value("f64") == 0x3FF0000000000000
    assert operand("0d3FF0000000000000").value("f64") == 0x3FF0000000000000
    assert operand("0dBFF0000000000000").value("f32") == 0xBF800000
    assert operand("1.5").value("f32") == 0x3FC00000
    assert operand("-2.5e1").value("f64") == 0xC039000000000000
    assert operand("(0xf0 & 0xcc) ^ 0xaa").value("b32") == (0xF0 & 0xCC) ^ 0xAA
    assert operand("(1 << 4) | ~0xFFU").value("b32") == (0x10 | ~0xFF) & 0xFFFFFFFF
    assert operand("-7 / 2").value("s32") == 0xFFFFFFFD
    assert operand("1").value("pred") == 1


def test_addresses() -> None:
    kernel = body(
        """ld.global.b32 %r1, [%rd1+-16];
        ld.global.b32 %r1, [ %rd1 + 0 ];
        ld.shared.b32 %r1, [%r2-8];
        ld.shared.b32 %r1, [16];
        st.async.b64 [%rd1+0x10], %rd2;
        tensor.op [%rd1, {%r1, %r2, 0}], [%r3+8], %rs1, %rd2;
        texture.op [%rd1, %rd2, {%r1}];"""
    )
    addresses = [i.operands[-1] for i in kernel.instructions[:3]]
    assert [address.offset for address in addresses if isinstance(address, Address)] == [-16, 0, -8]
    assert kernel.instructions[3].operands[1] == Address(Immediate("16"))
    target = kernel.instructions[4].operands[0]
    assert isinstance(target, Address)
    assert target.offset == 16
    tensor = kernel.instructions[5].operands
    assert isinstance(tensor[0], Address)
    assert tensor[0].coordinates is not None
    assert [name(kernel, c) for c in tensor[0].coordinates[:2]] == ["%r1", "%r2"]
    assert tensor[0].coordinates[2] == Immediate("0")
    assert isinstance(tensor[1], Address)
    assert tensor[1].offset == 8
    texture = kernel.instructions[6].operands[0]
    assert isinstance(texture, Address)
    assert texture.coordinates is None
    assert isinstance(texture.extra[1], Vector)


def test_operands() -> None:
    kernel = body(
        """shfl.sync.idx.b32 %r1|%p1, %r2, 0, 31, -1;
        elect.sync _|%p2, -1;
        setp.eq.and.b32 %p1, %r1, 0, !%p2;
        mov.b64 {%r1, _}, %rd1;
        mov.u32 %r1, %tid.x;
        mov.u32 %r1, %cluster_ctarank;
        mov.u64 %rd1, %clock64;
        mov.u32 %r1, WARP_SZ;"""
    )
    pair = kernel.instructions[0].operands[0]
    assert isinstance(pair, Pair)
    assert (name(kernel, pair.first), name(kernel, pair.second)) == ("%r1", "%p1")
    sink = kernel.instructions[1].operands[0]
    assert isinstance(sink, Pair)
    assert sink.first == Sink()
    negated = kernel.instructions[2].operands[3]
    assert isinstance(negated, Negated)
    assert name(kernel, negated.value) == "%p2"
    vector = kernel.instructions[3].operands[0]
    assert isinstance(vector, Vector)
    assert vector.items[1] == Sink()
    specials = [i.operands[1] for i in kernel.instructions[4:]]
    assert specials == [Special(s) for s in ("%tid.x", "%cluster_ctarank", "%clock64", "WARP_SZ")]


def test_names_with_double_colons_and_digits() -> None:
    text = "cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes.cta_group::2"
    instruction = one(f"{text} [%r1], [%rd1, {{%r1, %r2}}], [%r3];")
    assert instruction.name == text
    assert instruction.opcode == "cp"
    assert instruction.modifiers[:4] == ("async", "bulk", "tensor", "2d")


def test_guards() -> None:
    kernel = body("@%p1 bra A;\n@!%p2 mov.b32 %r1, 0;\nA: ret;")
    first, second, third = kernel.instructions
    assert first.guard is not None
    assert (name(kernel, first.guard), first.guard_negated, first.target) == ("%p1", False, 2)
    assert second.guard is not None
    assert (name(kernel, second.guard), second.guard_negated) == ("%p2", True)
    assert third.guard is None


def test_scopes_repeat_labels_and_registers() -> None:
    """Inline assembly in a loop is pasted more than once, with the same label and the same registers."""
    wait = """{
        .reg .pred P1;
        LAB_WAIT:
        try.wait P1, [%r1];
        @P1 bra DONE;
        bra LAB_WAIT;
        DONE:
        }
        """
    kernel = body(wait + "mov.b32 %r1, 0;\n" + wait)
    assert [i.target for i in kernel.instructions] == [None, 3, 0, None, None, 7, 4]
    first, second = (kernel.instructions[i].operands[0] for i in (0, 4))
    assert first != second
    assert kernel.register_names.count("P1") == 2
    assert len(kernel.labels) == 4


def test_a_branch_leaves_its_scope() -> None:
    kernel = body("{ bra OUT; { bra OUT; } OUT: ret; }\nOUT: exit;")
    assert [i.target for i in kernel.instructions] == [2, 2, None, None]


def test_a_scope_hides_a_register_from_the_outer_one() -> None:
    kernel = body("{ mov.b32 %r1, 1; .reg .b64 %r1; mov.b64 %r1, 1; } mov.b32 %r1, 2;")
    inner, redeclared, outer = (i.operands[0] for i in kernel.instructions)
    assert inner == outer
    assert isinstance(redeclared, Register)
    assert redeclared.type == "b64"


def test_statements_share_lines_and_instructions_span_them() -> None:
    kernel = body("mov.b32 %r1, 0; mov.b32 %r2,\n   1;\n  { mov.b32 %r3, 2; }  // } ; {\n/* bra X;\n */ ret;")
    assert [i.name for i in kernel.instructions] == ["mov.b32"] * 3 + ["ret"]
    start = kernel.instructions[0].ptx_line
    assert [i.ptx_line - start for i in kernel.instructions] == [0, 0, 2, 4]


def test_source_locations() -> None:
    kernel = parse(
        HEAD
        + """.file 1 "kernels/gemm.py"
        .visible .entry k() {
        mov.pred p, 1;
        .loc 1 12 5
        bar.sync 0;
        .loc 2 30 1, function_name $L__info_string0, inlined_at 1 15 9
        bar.sync 1;
        .loc 1 0 0
        ret;
        }
        .file 2 "device/ring.py", 1234, 5678
        .section .debug_str
        {
        $L__info_string0:
        .b8 95, 90, 0
        }
        """.replace("mov.pred p, 1;", ".reg .pred p; mov.pred p, 1;")
    ).kernels["k"]
    nowhere, plain, inlined, made_up = (i.location for i in kernel.instructions)
    assert nowhere is None
    assert plain == Location("kernels/gemm.py", 12)
    assert str(plain) == "kernels/gemm.py:12"
    assert inlined == Location("device/ring.py", 30, Location("kernels/gemm.py", 15))
    assert made_up is None


def test_pragmas_and_debug_sections_are_skipped() -> None:
    kernel = parse(
        HEAD
        + """.pragma "nounroll;{";
        .entry k() { .reg .b32 %r<3>;
        $L__BB0_1:
        .pragma "nounroll";
        .pragma "used_bytes_mask 15";
        bra.uni $L__BB0_1;
        }
        .section .debug_abbrev { .b8 1 // Abbreviation {
        .b8 0 }
        .section .debug_info
        { .b32 64
        $L__tmp1:
        .b64 k }"""
    ).kernels["k"]
    assert [i.target for i in kernel.instructions] == [0]


def test_branch_tables() -> None:
    kernel = body(
        """mov.b32 %r1, 2;
        $L_brx_0: .branchtargets
            $A,
            $B,
            $A;
        brx.idx %r1, $L_brx_0;
        $A: ret;
        $B: exit;"""
    )
    assert kernel.instructions[1].operands[1] == Symbol("$L_brx_0")
    assert kernel.branch_targets == {"$L_brx_0": (2, 3, 2)}


def test_carries_go_through_a_hidden_register() -> None:
    kernel = body(
        "add.cc.u32 %r1, %r2, %r3;\naddc.cc.u32 %r4, %r2, %r3;\naddc.u32 %r5, %r2, %r3;\nadd.u32 %r1, %r2, %r3;"
    )
    flags = [i.operands[3:] for i in kernel.instructions]
    assert flags[0] == flags[1] == flags[2]
    assert isinstance(flags[0][0], Register)
    assert flags[0][0].type == "pred"
    assert flags[3] == ()


def test_wide_registers_are_read() -> None:
    """128-bit registers are refused by what would compute with them, not by the reader."""
    kernel = body("mov.b128 %q1, {%rd1, %rd2};", REGISTERS + ".reg .b128 %q<2>;\n")
    assert "b128" in kernel.registers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mov.b32 %r1, %r99;", "'%r99' is not declared"),
        ("mov.b32 %r1, %whatever;", "'%whatever' is not declared"),
        ("@%r1 bra X; X: ret;", "is no predicate register"),
        ("bra NOWHERE;", "NOWHERE"),
        ("X: ret; X: ret;", "twice"),
        ("ld.b32 %r1, [%r2*4];", "'%r2*4' is not understood"),
        ("mov.b32 %r1, %r2 %r3;", "not understood"),
        ("mov.b32 %r1,, %r2;", "empty"),
        ("mov.b32 {%r1, %r2;", "not understood"),
        (".reg .q32 %q;", "type"),
        (".weird 3;", "does not know"),
        ("?;", "no statement"),
    ],
)
def test_refusals_name_line_and_text(text: str, message: str) -> None:
    with pytest.raises(PtxError, match=r"PTX line \d+") as fault:
        body("ret;\n" + text)
    assert message in str(fault.value)
    assert text.split()[0].strip("@{") in str(fault.value)


@pytest.mark.parametrize("text", [".entry k( .param .weird x ) { ret; }", "what is this", ".reg .b32 %r<3>;"])
def test_refusals_at_module_level(text: str) -> None:
    with pytest.raises(PtxError, match="PTX line 4"):
        parse(HEAD + text)
