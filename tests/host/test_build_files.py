"""Small parts of the build: manifest files, disassembly classes, selection, tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cute_kernels import table
from cute_kernels.build import families, manifest, resources, sass
from cute_kernels.build.errors import BuildError


@pytest.mark.parametrize(
    ("opcode", "name"),
    [
        ("UTCOMMA.4X", "MMA"),
        ("QMMA.SF.16864.F32", "MMA"),
        ("UTMALDG.2D", "TMA"),
        ("LDTM.x32", "TMEM"),
        ("LDSM.16.M88.4", "LDS/STS"),
        ("STG.E.128", "LDG/STG"),
        ("STL.64", "local"),
        ("UIADD3", "int"),
        ("IMAD.MOV.U32", "move"),
        ("IMAD.WIDE", "int"),
        ("UISETP.NE.AND", "int"),
        ("FFMA.FTZ", "fp"),
        ("F2FP.BF16.F32.PACK_AB", "convert"),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT", "sync"),
        ("BRA.U", "branch"),
        ("NOP", "NOP"),
        ("NEWOP.X", "other"),
    ],
)
def test_class_of_opcode(opcode: str, name: str) -> None:
    assert sass.class_of(opcode) == name


def test_no_opcode_has_two_classes() -> None:
    opcodes = [opcode for listed in sass.CLASSES.values() for opcode in listed.split()]
    assert len(opcodes) == len(set(opcodes))


def test_instruction_lines_of_the_disassembler() -> None:
    text = """
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
.L_x_1:
        /*0080*/               @!UP3 BRA `(.L_x_0) ;
        /*0560*/                   STL.64 [R1+0x74], R55                    (*"SpillRefill"*);
"""
    assert [opcode for opcode, _ in sass.INSTRUCTION.findall(text)] == ["LDC", "BRA", "STL.64"]
    assert "SpillRefill" in sass.INSTRUCTION.findall(text)[2][1]


@pytest.mark.parametrize(
    ("opcode", "nbytes"),
    [("STL", 4), ("STL.64", 8), ("STL.128", 16), ("STL.U8", 1), ("STL.EF.U16", 2), ("LDL.LU.64", 0)],
)
def test_bytes_of_a_local_store(opcode: str, nbytes: int) -> None:
    assert resources.store_bytes(opcode) == nbytes


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "not json"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(BuildError, match="is not a manifest of kernels"):
        manifest.read(tmp_path)


def test_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_text(json.dumps({"format": 99, "kernels": []}))
    with pytest.raises(BuildError, match="has format 99"):
        manifest.read(tmp_path)
    assert manifest.read(tmp_path / "empty") == []


def test_every_target_of_the_project_is_sound() -> None:
    targets = families.collect()
    assert len({target.stem for target in targets}) == len(targets)
    for target in targets:
        config = target.variant.shape.config()
        assert json.loads(json.dumps(config)) == config, f"{target.label}: config holds more than JSON does"
        assert target.variant.name.startswith(target.package), f"{target.label}: not named after its package"
        loaded = families.tree().closure(target.module)
        assert target.module in loaded
        for unrelated in ("runtime", "emulator", "ops"):
            assert f"cute_kernels.{unrelated}" not in loaded, (
                f"{target.label} is rebuilt when {unrelated} changes"
            )


def test_table_aligns_numbers_right_and_text_left() -> None:
    assert table.render(["name", "n"], [["a", 5], ["long", 123]]) == (
        "name    n\n----  ---\na       5\nlong  123"
    )
