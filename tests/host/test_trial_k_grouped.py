"""How a trial judges groups along K: with a stand-in for the operation that is right, or wrong in one way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sm100
from cute_kernels import heuristics, ops_k_grouped
from cute_kernels.formats import dequantize
from cute_kernels.runtime import ArgumentError
from cute_kernels.scale_factors import unpack_k_grouped
from cute_kernels.trial_k_grouped import KGroupedGemm, of_groups_along_k
from cute_kernels.trial_problems import problem

GRANULARITY = {"mxf8": 32, "mxf8_k128": 128}


def values(operand: Any, ks: tuple[int, ...], kind: str) -> list[torch.Tensor]:
    """Of each group, [k, MN]."""
    if kind == "bf16":
        return list(operand.double().split(ks))
    elements, words = operand
    granularity = GRANULARITY[kind]
    scales = unpack_k_grouped(words, list(ks), granularity)
    return list(dequantize(elements, scales, group=(granularity, 1), dtype=torch.float64).split(ks))


def in_rows(flat: torch.Tensor, ks: tuple[int, ...], rows: int) -> torch.Tensor:
    """[K, MN] of the matrices [MN, k] of all groups."""
    matrices = flat.view(torch.int16 if flat.itemsize == 2 else torch.uint8).split([rows * k for k in ks])
    return torch.cat([x.view(rows, k) for x, k in zip(matrices, ks, strict=True)], 1).t().view(flat.dtype)


@pytest.mark.parametrize("fault", ["none", "group", "element", "empty", "outside"])
@pytest.mark.parametrize("layout", ["tn", "nt"])
@pytest.mark.parametrize("kind", ["bf16", *GRANULARITY])
def test_judgement(monkeypatch: pytest.MonkeyPatch, kind: str, layout: str, fault: str) -> None:
    def stand_in(a: Any, b: Any, d: Any, ks: Any, lengths: torch.Tensor, c: Any, recipe: Any) -> None:
        assert lengths.tolist() == list(ks)
        assert (recipe == (1, 1, 32)) == (kind == "mxf8")
        if layout == "nt":
            a, b = (
                in_rows(x, ks, rows) if kind == "bf16" else (in_rows(x[0], ks, rows), x[1])
                for x, rows in ((a, 9), (b, 12))
            )
        pairs = zip(values(a, ks, kind), values(b, ks, kind), strict=True)
        d.copy_(torch.stack([x.T @ y for x, y in pairs]) + c.double())
        if fault == "group":
            d[0] = d[1]
        if fault == "element":
            d[1, 3, 5] *= 1.01
        if fault == "empty":
            d[-1] = 0
        if fault == "outside":
            d._base[1, 3, d.shape[2]] = 0.0

    monkeypatch.setattr(ops_k_grouped, f"k_grouped_gemm_{layout}_contiguous", stand_in)
    run, judge = KGroupedGemm(9, 12, (256, 128, 0), kind, accumulate=True, layout=layout).prepare("cpu", 1)
    run()
    outcome = judge()
    assert outcome.right == (fault in ("none", "outside"))
    assert outcome.contained == (fault != "outside")


def test_problems_of_the_command_line() -> None:
    product = problem("sm100.gemm_blockscaled", 64, 32, 352, "f32", True, "mxf8", "tn")
    grouped = of_groups_along_k(product, 4)
    assert grouped == KGroupedGemm(64, 32, (352, 256, 160, 0), "mxf8", True)
    assert str(grouped) == "64 x 32 x 352+256+160+0 + C"
    chosen_for = grouped.to_choose_for()
    assert (chosen_for.k, chosen_for.batches, chosen_for.k_grouped) == (192, 4, True)
    assert of_groups_along_k(product, 1) == KGroupedGemm(64, 32, (352,), "mxf8", True)
    with pytest.raises(ArgumentError, match="there are -1 groups"):
        of_groups_along_k(product, -1)
    assert of_groups_along_k(problem("sm100.gemm_bf16", 8, 8, 32, "f32"), 1).layout == "nt"
    with pytest.raises(ArgumentError, match="float32 D, of operands in the layout tn or nt"):
        of_groups_along_k(problem("sm100.gemm_bf16", 64, 32, 352), 2)


@pytest.mark.parametrize(("layout", "form"), [("nt", f) for f in ("bf16", *GRANULARITY)] + [("tn", "bf16")])
def test_a_pair_is_chosen_where_there_are_tiles_for_all(layout: str, form: str) -> None:
    def best(m: int, n: int, ks: tuple[int, ...]) -> str:
        asked = KGroupedGemm(m, n, ks, form, accumulate=True, layout=layout).to_choose_for()
        configs = {v.name: v.shape.config() for v in sm100.variants("sm_100a") if v.kernel == asked.kernel}
        found = heuristics.candidates(asked, 148, configs)[0]
        assert found.estimate is not None
        return found.name

    suffix = "_k_grouped" + ("_tn" if layout == "tn" else "") + "_accumulate"
    for m, n in ((4096, 7168), (7168, 2048)):
        for groups, mean in ((4, 8192), (8, 4096), (16, 2048)):
            name = best(m, n, (mean,) * groups)
            assert name.startswith(f"sm100_gemm_{form}_256x"), name
            assert name.endswith(suffix), name
    assert best(64, 64, (256, 0)).startswith(f"sm100_gemm_{form}_128x")
