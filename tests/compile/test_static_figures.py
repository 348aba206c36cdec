"""Static figures of cubins as built here."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf import static
from sm100 import variants
from tests.building import Request, build

GEMM = next(v for v in variants("sm_100a") if v.kernel == "gemm_blockscaled")


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, static.Figures]:
    out: Path = tmp_path_factory.mktemp("cubins")
    gemms = ("sm_100a", "*_128x128x*_bf16")
    for arch, only in (("sm_90a", "nvfp4_dequantize"), ("sm_100a", GEMM.name), gemms):
        result = build(Request(out, archs=(arch,), only=only), say=lambda line: None)
        assert result.failures == {}
    return static.read_all(out)


def test_the_roles_of_the_gemm_are_found(read: dict[str, static.Figures]) -> None:
    figures = read[f"sm_100a {GEMM.name}"]
    loops = figures["loops"]
    assert loops["mma"]["MMA"] > 0
    assert loops["tma load"]["TMA"] >= 2  # A and B at least
    assert "MMA" not in loops["tma load"] and "MMA" not in loops["epilogue"]
    assert loops["epilogue"]["tmem_columns"] % GEMM.shape.tile_n == 0
    assert figures["ctas_per_sm"] == 1
    assert figures["stages"] == GEMM.shape.stages
    assert figures["spill_bytes"] == 0


def test_the_dequantization_is_one_loop_over_global_memory(read: dict[str, static.Figures]) -> None:
    figures = read["sm_90a sm80_nvfp4_dequantize"]
    assert set(figures["loops"]) == {"global"}
    assert figures["loops"]["global"]["LDG/STG"] == 3
    assert figures["spill_bytes"] == 0


# Instructions of a K tile: of NVIDIA's kernels at this tile, but MXFP8's with a factor every 32 (theirs has 50), and
# for FP8 with FP4 and for BF16 of DeepGEMM's.
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("mxf4_128x128x256", 55),
        ("nvf4_128x128x256", 67),
        ("mxf8_128x128x128", 51),
        ("mxf8_k128_128x128x128", 47),
        ("mxf8_k128_mxf4_128x128x128", 55),
        ("mxf8_mxf4_128x128x128", 55),
        ("bf16_128x128x64", 44),
    ],
)
def test_multiply_takes_few_instructions(read: dict[str, static.Figures], name: str, most: int) -> None:
    (figures,) = (f for key, f in read.items() if key.endswith(f"gemm_{name}_bf16"))
    assert figures["spill_bytes"] == 0
    assert figures["loops"]["mma"]["instructions"] <= most
    loads = [loop for name, loop in figures["loops"].items() if name in ("tma load", "tma load 2")]
    assert len(loads) == (1 if name.startswith("bf16") else 2)
    assert max(loop["instructions"] for loop in loads) < 30
