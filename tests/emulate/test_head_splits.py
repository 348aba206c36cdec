"""Products with a gap in every head of D: the product's columns in their places, and zeros in the gaps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cute_kernels
import sm100
from cute_kernels.runtime import ArgumentError
from tests.emulate.direct import by_turns
from tests.emulate.scaled_operands import GRANULARITY, operand, recipe

POISON = -77.0

CUBINS = "*_heads", *(f"sm100_gemm_{family}_128x128x???_f32" for family in GRANULARITY)
pytestmark = pytest.mark.usefixtures("cubins")


def spread(product: torch.Tensor, splits: tuple[int, int, int]) -> torch.Tensor:
    """Its columns one by one where the definition puts them."""
    left, mid, right = splits
    n = product.shape[1]
    d = torch.zeros(product.shape[0], n // (left + right) * sum(splits), dtype=product.dtype)
    for j in range(n):
        head, offset = divmod(j, left + right)
        d[:, head * sum(splits) + offset + (mid if offset >= left else 0)] = product[:, j]
    return d


@pytest.mark.parametrize(("family", "schedule"), by_turns(*GRANULARITY))
@pytest.mark.parametrize(
    ("m", "heads", "k", "splits"),
    [
        (1, 1, 128, (128, 64, 128)),
        (130, 3, 256, (128, 64, 128)),
        (67, 5, 128, (32, 32, 64)),
        (40, 3, 128, (96, 160, 32)),  # heads as wide as a tile
        (33, 2, 256, (32, 96, 288)),
        (20, 2, 128, (64, 0, 96)),
    ],
)
def test_columns_and_gaps(
    family: str, schedule: str, m: int, heads: int, k: int, splits: tuple[int, int, int]
) -> None:
    n = heads * (splits[0] + splits[2])
    a, b = operand(family, m, k, m), operand(family, n, k, n + 1)
    dtype = torch.float32 if family == "mxf8_k128" and m % 2 else torch.bfloat16
    memory = torch.full((m, heads * sum(splits) + 16), POISON, dtype=dtype)
    d = memory[:, :-16]
    with cute_kernels.emulate("sm_100a", schedule, 3, 2) as emulation:
        result = cute_kernels.gemm_nt_skip_head_mid(a, b, d, head_splits=splits, recipe=recipe(family))
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32, recipe=recipe(family))
    assert result is d
    assert [report.warnings for report in emulation.reports] == [[], []]
    assert torch.equal(d, spread(product.to(dtype), splits))
    assert bool((memory[:, -16:] == POISON).all())


def test_deepgemms_name_and_a_new_d() -> None:
    a, b = operand("mxf8_k128", 5, 128, 1), operand("mxf8_k128", 256, 128, 2)
    d = torch.full((5, 320), POISON, dtype=torch.bfloat16)
    with cute_kernels.emulate("sm_100a"):
        cute_kernels.fp8_gemm_nt_skip_head_mid(a, b, d, (128, 64, 128))
        new = cute_kernels.gemm_nt_skip_head_mid(a, b, head_splits=(128, 64, 128))
    assert not new[:, 128:192].any() and torch.equal(new, d)
    assert new.float().abs().max() > 0


def test_nothing_to_sum() -> None:
    a, b = operand("mxf4", 5, 0, 1), operand("mxf4", 192, 0, 2)
    d = torch.full((5, 288), POISON, dtype=torch.bfloat16)
    with cute_kernels.emulate("sm_100a") as emulation:
        cute_kernels.gemm_nt_skip_head_mid(a, b, d, head_splits=(32, 32, 32))
        empty = cute_kernels.gemm_nt_skip_head_mid(
            operand("mxf4", 0, 64, 1), operand("mxf4", 64, 64, 2), head_splits=(32, 32, 32)
        )
    assert not emulation.reports and empty.shape == (0, 96)
    assert torch.equal(d, torch.zeros(5, 288, dtype=torch.bfloat16))


class Call:
    """A call that would be fine."""

    def __init__(self) -> None:
        self.a, self.b = operand("mxf8_k128", 20, 128, 1), operand("mxf8_k128", 192, 128, 2)
        self.d = torch.full((20, 256), POISON, dtype=torch.bfloat16)
        self.splits: Any = (64, 32, 32)
        self.options: dict[str, Any] = {}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "straddled": ({"splits": (48, 32, 48)}, r"head_splits is \(48, 32, 48\); .* multiples of 32"),
    "odd gap": ({"splits": (64, 16, 32)}, "multiples of 32"),
    "negative": ({"splits": (64, -32, 32)}, "multiples of 32"),
    "no left": ({"splits": (0, 32, 96)}, "only mid may be 0"),
    "two": ({"splits": (64, 32)}, r"must be \(left, mid, right\)"),
    "part of a head": ({"splits": (64, 32, 64)}, "N is 192, .* heads of 128 columns"),
    "shape": ({"d": torch.zeros(20, 192, dtype=torch.bfloat16)}, r"this call takes bfloat16 \[20, 256\]"),
    "dtype": ({"d": torch.zeros(20, 256, dtype=torch.float16)}, "d is to be float16"),
    "rows": ({"d": torch.zeros(20, 260, dtype=torch.bfloat16)[:, :256]}, "rows are 520 bytes apart"),
    "dtypes": ({"options": {"out_dtype": torch.float32}}, "out_dtype is torch.float32, but d is"),
    "recipe": ({"options": {"recipe": (1, 128, 128)}}, r"recipe is \(1, 128\) for a and \(128, 128\) for b"),
    "operand": ({"a": None}, "a is a NoneType"),
    "device": ({"d": torch.zeros(20, 256, dtype=torch.bfloat16, device="meta")}, "different devices"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    spoilt, message = REFUSED[what]
    call = Call()
    call.__dict__.update(spoilt)
    before = call.d.clone()
    with cute_kernels.emulate("sm_100a") as emulation:
        for _ in range(2):  # a refusal must not be remembered as something else
            with pytest.raises(ArgumentError, match=message):
                cute_kernels.gemm_nt_skip_head_mid(
                    call.a, call.b, call.d, head_splits=call.splits, **call.options
                )
    assert not emulation.reports
    assert call.d.device.type == "meta" or torch.equal(call.d, before)


def test_a_d_over_an_operand() -> None:
    call = Call()
    memory = torch.zeros(20, 512, dtype=torch.uint8)
    a = memory.view(torch.float8_e4m3fn)[:, :128], call.a[1]
    with cute_kernels.emulate("sm_100a"), pytest.raises(ArgumentError, match="d shares memory with a "):
        cute_kernels.gemm_nt_skip_head_mid(a, call.b, memory.view(torch.bfloat16), head_splits=(64, 32, 32))


def test_no_kernel_for_mixed_operands() -> None:
    call = Call()
    with (
        cute_kernels.emulate("sm_100a"),
        pytest.raises(
            ArgumentError, match=r"a and b are FP8 x MXFP4; gemm_nt_skip_head_mid to torch\.bfloat16"
        ),
    ):
        cute_kernels.gemm_nt_skip_head_mid(
            call.a, operand("mxf4", 192, 128, 2), call.d, head_splits=call.splits
        )


def test_what_is_built() -> None:
    """What the operation names, and no more."""
    built = [(v.shape.family_dtype, v.shape.d_dtype) for v in sm100.variants("sm_100a") if v.shape.heads]
    assert sorted(built) == sorted(
        [
            ("mxf8_k128", "bf16"),
            ("mxf8_k128", "f32"),
            ("mxf8", "bf16"),
            ("mxf4", "bf16"),
            ("nvf4", "bf16"),
        ]
    )
