"""How a trial judges an MXFP8 or NVFP4 D: with a stand-in for the operation that is right, or wrong in one way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cute_kernels import ops_quantized
from cute_kernels.formats import dequantize, quantize_mxfp8, quantize_nvfp4
from cute_kernels.runtime import ArgumentError
from cute_kernels.scale_factors import pack, unpack
from cute_kernels.trial_grouped import Kind, QuantizedGroupedGemm, of_groups
from cute_kernels.trial_problems import problem

FAULTS = {
    "right": (True, True),
    "element": (False, True),
    "scale": (False, True),
    "unwritten": (False, True),
}


def values(operand: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    data, scales = operand
    return dequantize(data, unpack(scales, data.shape[1] // 16), group=(1, 32), dtype=torch.float64)


@pytest.mark.parametrize("fault", [*FAULTS, "outside", "scales outside"])
def test_judgement(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def gemm_nt_mxfp8(a: Any, b: Any, out: tuple[torch.Tensor, torch.Tensor], recipe: None) -> None:
        elements, scales = quantize_mxfp8((values(a) @ values(b).T).float())
        d, words = out
        d.copy_(elements)
        words.copy_(pack(scales))
        if fault == "element":
            d.view(torch.uint8)[3, 40] ^= 0x20
        if fault == "scale":
            words[2, 1] += 1
        if fault == "unwritten":
            words[1, 0] = -1
        if fault == "outside":
            d.as_strided((5, 64), d.stride())[0, 50] = 1.0
        if fault == "scales outside":
            words.as_strided((8, 1), (1, 8))[6] = 0

    columns = 48 if fault in ("outside", "element", "right") else 160
    monkeypatch.setattr(ops_quantized, "gemm_nt_mxfp8", gemm_nt_mxfp8)
    run, judge = problem("sm100.gemm_blockscaled", 5, columns, 64, "mxf8").prepare("cpu", 3)
    run()
    outcome = judge()
    assert (outcome.right, outcome.contained) == FAULTS.get(fault, (True, False))


@pytest.mark.parametrize("fault", [*FAULTS, "group", "outside", "scales of none"])
@pytest.mark.parametrize("kind", ["contiguous", "prefix"])
def test_judgement_of_groups(monkeypatch: pytest.MonkeyPatch, kind: Kind, fault: str) -> None:
    def stand_in(a: Any, b: Any, out: Any, layout: torch.Tensor, **options: Any) -> None:
        assert options == {"recipe": (1, 1, 32), "alignment": 128, "use_psum_layout": kind == "prefix"}
        d, words = out
        left = dequantize(a[0], unpack(a[1], 2), group=(1, 32), dtype=torch.float64)
        for group in range(3):
            rows = (layout == group).nonzero()[:, 0]
            if kind == "prefix":
                start = -(-int(layout[group - 1]) // 128) * 128 if group else 0
                rows = torch.arange(start, int(layout[group]))
            of = (group + 1) % 2 if fault == "group" else group
            right = dequantize(b[0][of], unpack(b[1][of], 2), group=(1, 32), dtype=torch.float64)
            elements, scales = quantize_mxfp8((left[rows] @ right.T).float())
            d.view(torch.uint8)[rows] = elements.view(torch.uint8)
            words[rows] = pack(scales)
        first = int((layout == 0).nonzero()[0, 0]) if kind == "contiguous" else 0  # row of the first group
        if fault == "element":
            d.view(torch.uint8)[first + 3, 40] ^= 0x20
        if fault == "scale":
            words[first + 2, 0] += 1
        if fault == "unwritten":
            words[first + 1, 0] = -1
        if fault == "outside":
            d.as_strided((5, 80), d.stride())[0, 70] = 1.0
        if fault == "scales of none":
            words[first + 127, 0] = 0

    monkeypatch.setattr(ops_quantized, "m_grouped_gemm_nt_contiguous_mxfp8", stand_in)
    run, judge = QuantizedGroupedGemm(kind, (5, 3, 0), 64, 64, "mxf8").prepare("cpu", 2)
    run()
    outcome = judge()
    expected = FAULTS | {"group": (False, True)}
    assert (outcome.right, outcome.contained) == expected.get(fault, (True, False))


def test_groups_of_the_command_line() -> None:
    product = problem("sm100.gemm_blockscaled", 40, 64, 64, "mxf8", operands="mxf8")
    assert of_groups(product, "prefix", 3) == QuantizedGroupedGemm("prefix", (40, 20, 0), 64, 64, "mxf8")
    assert of_groups(product, "contiguous", 2).to_choose_for().d_dtype == "mxf8"
    with pytest.raises(ArgumentError, match="they are not masked"):
        of_groups(product, "masked", 3)
    with pytest.raises(ArgumentError, match="BF16 or MXFP8 D without C"):
        of_groups(problem("sm100.gemm_blockscaled", 40, 64, 64, "nvf4"), "prefix", 3)


@pytest.mark.parametrize("fault", [*FAULTS, "outside", "scales outside"])
def test_judgement_of_nvfp4(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def gemm_nt_nvfp4(a: Any, b: Any, factor: torch.Tensor, out: Any, recipe: None) -> None:
        product = (values(a) @ values(b).T).float()
        row, column = divmod(int(product.abs().argmax()), columns)
        elements, scales, _ = quantize_nvfp4(product, global_scale=factor)
        d, words = out
        d.copy_(elements)
        words.copy_(pack(scales))
        if fault == "element":
            d[row, column // 2] = 0
        if fault == "scale":
            words[row, column // 64] ^= 0x08080808
        if fault == "unwritten":
            words[1, 0] = -1
        if fault == "outside":
            d.as_strided((5, 48), d.stride())[0, 40] = 1
        if fault == "scales outside":
            words.as_strided((8, 1), (1, 8))[6] = 0

    columns = 64 if fault in ("outside", "right") else 160
    monkeypatch.setattr(ops_quantized, "gemm_nt_nvfp4", gemm_nt_nvfp4)
    run, judge = problem("sm100.gemm_blockscaled", 5, columns, 64, "nvf4").prepare("cpu", 3)
    run()
    outcome = judge()
    assert (outcome.right, outcome.contained) == FAULTS.get(fault, (True, False))


@pytest.mark.parametrize("wrong", [{"accumulate": True}, {"layout": "tn"}])
def test_refusals(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="an MXFP8 or NVFP4 D has no C"):
        problem("sm100.gemm_blockscaled", 5, 48, 64, "mxf8", **wrong)
