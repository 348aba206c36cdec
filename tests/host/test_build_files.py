"""Small parts of the build: manifest files, disassembly classes, selection, tables."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from cute_kernels import table
from cute_kernels.build import driver, families, manifest, resources, sass
from cute_kernels.build.errors import BuildError
from cute_kernels.build.variant import Variant


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


class Package(ModuleType):
    """A kernel package that offers given variants for every architecture."""

    def __init__(self, *offered: Variant) -> None:
        super().__init__("made_up")
        self.offered = offered

    def variants(self, arch: str) -> list[Variant]:
        return list(self.offered)


def offered(name: str, archs: tuple[str, ...] = ("sm_80",)) -> Variant:
    return Variant("family", name, None, (), (32, 1, 1), (1, 1, 1), 0, archs, lambda arch, options: None)


@pytest.mark.parametrize(
    ("variants", "reason"),
    [
        ((offered("a"), offered("b"), offered("a")), "two variants of sm_80 are named a"),
        (
            (offered("a", ("sm_90a",)),),
            r"a \(sm_80\) is offered for an architecture outside its \('sm_90a',\)",
        ),
    ],
)
def test_a_package_that_contradicts_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch, variants: tuple[Variant, ...], reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "made_up", Package(*variants))
    with pytest.raises(BuildError, match=reason):
        families.collect(["made_up"], ["sm_80"])


def test_patterns() -> None:
    assert families.matches(None, "family", "name_x1")
    assert families.matches("x1", "family", "name_x1")
    assert families.matches("ami", "family", "name_x1")
    assert families.matches("*_x?", "family", "name_x1")
    assert not families.matches("x", "family", "name")
    assert not families.matches("name_*2", "family", "name_x1")


def test_a_second_build_in_a_folder_waits(tmp_path: Path) -> None:
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with driver.locked(tmp_path, said.append):
            order.append("second")

    with driver.locked(tmp_path, said.append):
        assert said == []
        thread = threading.Thread(target=second)
        thread.start()
        while not said:
            time.sleep(0.001)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert said == [f"waiting for another build in {tmp_path}"]
