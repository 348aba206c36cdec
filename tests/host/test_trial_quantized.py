"""How a trial judges an MXFP8 or NVFP4 D: with a stand-in for the operation that is right, or wrong in one way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cute_kernels import ops_quantized
from cute_kernels.formats import dequantize, quantize_mxfp8, quantize_nvfp4
from cute_kernels.runtime import ArgumentError
from cute_kernels.scale_factors import pack, unpack
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
