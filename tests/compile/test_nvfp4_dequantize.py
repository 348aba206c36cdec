"""The NVFP4 dequantize kernel as compiled, for each architecture: registers alone, loads first, wide stores."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

import sm80
from cute_kernels.build import sass
from cute_kernels.build.manifest import read
from tests.building import Request, build

# Threads that an architecture keeps resident; 64 Ki registers serve them all.
RESIDENT = dict.fromkeys(("sm_80", "sm_90a", "sm_100a", "sm_103a"), 2048)
RESIDENT |= dict.fromkeys(("sm_86", "sm_89", "sm_120a"), 1536)


class Compiled(NamedTuple):
    """A kernel's entry in the manifest, its machine code and its PTX."""

    entry: dict[str, Any]
    code: list[sass.Instruction]
    ptx: str


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """The kernel by architecture."""
    out = tmp_path_factory.mktemp("cubins")
    result = build(Request(out, packages=("sm80",), only="nvfp4_dequantize"), say=lambda line: None)
    assert result.failures == {}
    return {
        e["arch"]: Compiled(e, sass.disassemble(out / e["cubin"]), (out / e["ptx"]).read_text())
        for e in read(out)
    }


def test_there_is_one_for_each_architecture(compiled: dict[str, Compiled]) -> None:
    assert set(compiled) == set(RESIDENT)
    assert sm80.variants("sm_75") == []


@pytest.mark.parametrize("arch", RESIDENT)
def test_registers_hold_everything_at_full_occupancy(compiled: dict[str, Compiled], arch: str) -> None:
    entry, code, _ = compiled[arch]
    assert entry["local_bytes"] == entry["spill_bytes"] == 0
    assert not {"local", "LDS/STS", "sync", "other"} & set(sass.mix(code))
    # Registers are given out by the warp, 256 at a time.
    per_warp = -(-entry["registers"] * 32 // 256) * 256
    assert per_warp * RESIDENT[arch] // 32 <= 65536, f"{entry['registers']} registers"


@pytest.mark.parametrize("arch", RESIDENT)
def test_whole_tiles_load_everything_first_and_store_16_bytes(
    compiled: dict[str, Compiled], arch: str
) -> None:
    entry, code, _ = compiled[arch]
    words = entry["config"]["words_per_thread"]
    opcodes = [i.opcode for i in code]
    first_store = next(i for i, opcode in enumerate(opcodes) if opcode.startswith("STG"))
    first_product = next(i for i, opcode in enumerate(opcodes) if opcode.startswith(("HMUL2", "HFMA2")))
    loads = [opcode for opcode in opcodes[:first_product] if opcode.startswith("LDG")]
    # A word and a scale factor for each, and the global scale.
    assert sorted(loads) == ["LDG.E"] * (words + 1) + ["LDG.E.U8"] * words
    assert not any(opcode.startswith("LDG") for opcode in opcodes[first_product:first_store])
    # The whole tile's, and the one in the loop of the last tile.
    assert [opcode for opcode in opcodes if opcode.startswith("STG")] == ["STG.E.128"] * (words + 1)


@pytest.mark.parametrize("arch", RESIDENT)
def test_parameters_are_pointers_and_a_count(compiled: dict[str, Compiled], arch: str) -> None:
    entry, _, ptx = compiled[arch]
    assert [(p["name"], p["kind"]) for p in entry["params"]] == [
        ("packed", "pointer"),
        ("scales", "pointer"),
        ("global_scale", "pointer"),
        ("out", "pointer"),
        ("blocks", "i64"),
    ]
    assert ptx.split("{")[0].count(".param .u64") == 5
    assert (tuple(entry["block"]), tuple(entry["cluster"]), entry["dynamic_shared"]) == (
        (128, 1, 1),
        (1, 1, 1),
        0,
    )
