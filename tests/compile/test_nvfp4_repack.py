"""The NVFP4 repack kernel as compiled, for each architecture: registers alone, loads first, wide stores."""

from __future__ import annotations

from typing import Any

import pytest

from cute_kernels.build import sass
from cute_kernels.build.manifest import read
from sm80.shape import ARCHS
from tests.building import Request, build


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """The kernel's entry in the manifest and its opcodes, by architecture."""
    out = tmp_path_factory.mktemp("cubins")
    assert not build(Request(out, packages=("sm80",), only="nvfp4_repack"), say=lambda line: None).failures
    return {e["arch"]: (e, [i.opcode for i in sass.disassemble(out / e["cubin"])]) for e in read(out)}


@pytest.mark.parametrize("arch", ARCHS)
def test_registers_hold_everything_at_full_occupancy(
    compiled: dict[str, tuple[dict[str, Any], list[str]]], arch: str
) -> None:
    entry, opcodes = compiled[arch]
    assert entry["local_bytes"] == entry["spill_bytes"] == entry["dynamic_shared"] == 0
    assert entry["registers"] <= (32 if arch in ("sm_80", "sm_90a", "sm_100a", "sm_103a") else 40)
    assert not [opcode for opcode in opcodes if opcode.startswith(("LDL", "STL", "LDS", "STS", "BAR"))]


@pytest.mark.parametrize("arch", ARCHS)
def test_loads_come_first_and_stores_are_wide(
    compiled: dict[str, tuple[dict[str, Any], list[str]]], arch: str
) -> None:
    _, opcodes = compiled[arch]
    memory = [opcode for opcode in opcodes if opcode.startswith(("LDG", "STG"))]
    assert sorted(memory[:8]) == ["LDG.E.64"] * 4 + ["LDG.E.U8"] * 4
    assert sorted(memory[8:]) == ["STG.E", "STG.E.128", "STG.E.128"]
