"""Products of groups of rows that leave as MXFP8: the bits of each group's quantized FP32 product, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cute_kernels
import sm100
from cute_kernels.device.umma_formats import FORMATS
from cute_kernels.formats import quantize_mxfp8
from cute_kernels.runtime import ArgumentError
from cute_kernels.scale_factors import from_blocked, unpack
from cute_kernels.trial_grouped import GroupedGemm, Kind
from cute_kernels.trial_operands import operand
from tests.emulate.direct import by_turns

FAMILIES = ("mxf8", "mxf8_k128")
POISON, POISON_SCALE = 0xFB, 0x5A

CUBINS = "*_128x128x*_mxf8_by_*", *(f"sm100_gemm_{f}_128x128x???_f32" for f in FAMILIES)
pytestmark = pytest.mark.usefixtures("cubins")


class Case:
    """Operands of groups, their layout, and poisoned outputs with poison around."""

    def __init__(self, problem: GroupedGemm, seed: int, blocked: bool = False) -> None:
        self.problem, self.blocked = problem, blocked
        generator = torch.Generator().manual_seed(seed)
        form = FORMATS[problem.operands]
        self.layout, self.owner = problem.given_layout(generator)
        rows, n, k = tuple(self.owner.shape), problem.n, problem.k
        self.a, _ = operand(form, form.a, rows, k, False, generator, "cpu")
        self.b, _ = operand(form, form.b, (len(problem.rows), n), k, False, generator, "cpu")
        self.recipe = (1, 1, form.a.granularity)
        m, words = problem.m, -(-n // 128)
        self.d = torch.full((m, n + 16), POISON, dtype=torch.uint8)
        if blocked:
            self.memory = torch.full((-(-m // 128) * words * 512,), POISON_SCALE, dtype=torch.uint8)
            self.scales = self.memory
        else:
            size = words + 1, -(-m // 4) * 4
            self.memory = torch.full(size, POISON_SCALE * 0x01010101, dtype=torch.int32)
            self.scales = self.memory[:words, :m].T

    @property
    def out(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.d.view(torch.float8_e4m3fn)[:, : self.problem.n], self.scales

    def run(self, **options: Any) -> None:
        psum = self.problem.kind == "prefix"
        options = {"recipe": self.recipe, "alignment": self.problem.alignment, **options}
        cute_kernels.m_grouped_gemm_nt_contiguous_mxfp8(
            self.a,
            self.b,
            self.out,
            self.layout,
            use_psum_layout=psum,
            sf_layout="blocked" if self.blocked else "packed",
            **options,
        )

    def check(self, rule: Any = "ceil") -> None:
        """Hold D and its scale factors to the quantized product of each group; rows of none to the poison."""
        m, n = self.problem.m, self.problem.n
        groups, words = -(-n // 32), -(-n // 128)
        elements = torch.full((m, n), POISON, dtype=torch.uint8)
        scales = torch.full((m, words * 4), POISON_SCALE, dtype=torch.uint8)
        for group in range(len(self.problem.rows)):
            own = self.owner == group
            b = tuple(tensor[group] for tensor in self.b)
            product = cute_kernels.gemm_nt(self.a, b, out_dtype=torch.float32, recipe=self.recipe)[own]
            if own.any():
                codes, factors = quantize_mxfp8(product, rule=rule)
                elements[own] = codes.view(torch.uint8)
                scales[own] = torch.nn.functional.pad(factors.view(torch.uint8), (0, words * 4 - groups))
        assert torch.equal(self.d[:, :n], elements)
        assert bool((self.d[:, n:] == POISON).all())
        if self.blocked:
            whole = from_blocked(self.memory, -(-m // 128) * 128, words * 4)
            assert torch.equal(whole[:m], scales) and bool((whole[m:] == POISON_SCALE).all())
        else:
            assert torch.equal(unpack(self.scales, words * 4).view(torch.uint8), scales)
            assert bool((self.memory[words] == POISON_SCALE * 0x01010101).all())
            assert bool((self.memory[:, m:] == POISON_SCALE * 0x01010101).all())


KINDS: tuple[Kind, ...] = ("contiguous", "prefix")


@pytest.mark.parametrize(("kind", "schedule"), by_turns(*KINDS))
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("rows", "n", "k", "blocked", "rule"),
    [((0, 1, 150, 33), 176, 256, False, "ceil"), ((5, 0, 128), 400, 128, True, "floor")],
)
def test_bits(
    rows: tuple[int, ...], n: int, k: int, blocked: bool, rule: Any, family: str, kind: Kind, schedule: str
) -> None:
    """Rows of none hold numbers too, and so do those behind the last group."""
    case = Case(GroupedGemm(kind, rows, n, k, family, room=37), len(rows), blocked)
    with cute_kernels.emulate("sm_100a", schedule, 3, 2) as emulation:
        case.run(rule=rule)
        assert [report.warnings for report in emulation.reports] == [[]]
        case.check(rule)


def test_runs_that_begin_anywhere() -> None:
    """Rows of a tile that are another group's are not its to write, nor are their scale factors."""
    case = Case(GroupedGemm("prefix", (3, 0, 150, 1, 40), 48, 64, "mxf8", alignment=4), 1)
    with cute_kernels.emulate("sm_100a", "random", 5, 2):
        case.run()
        case.check()


def test_all_rows_of_none() -> None:
    case = Case(GroupedGemm("contiguous", (0, 0), 48, 64, "mxf8", room=140), 2)
    with cute_kernels.emulate("sm_100a") as emulation:
        case.run()
        assert len(emulation.reports) == 1
    assert bool((case.d == POISON).all() and (case.memory == POISON_SCALE * 0x01010101).all())


def test_the_same_launch_serves_other_sizes() -> None:
    """Sizes change in place, as between replays of a graph."""
    case = Case(GroupedGemm("prefix", (130, 2), 48, 64, "mxf8", room=128), 3)
    with cute_kernels.emulate("sm_100a"):
        case.run()
        case.check()
        case.layout.copy_(torch.tensor([4, 230]))
        case.owner[:] = -1
        case.owner[:4], case.owner[128:230] = 0, 1
        case.d.fill_(POISON)
        case.memory.fill_(POISON_SCALE * 0x01010101)
        case.run()
        case.check()


def test_deepgemms_name_and_a_new_d() -> None:
    case = Case(GroupedGemm("contiguous", (5, 130), 48, 128, "mxf8_k128"), 4)
    with cute_kernels.emulate("sm_100a"):
        cute_kernels.m_grouped_fp8_gemm_nt_contiguous_mxfp8out(case.a, case.b, *case.out, case.layout)
        case.check()
        d, scales = cute_kernels.m_grouped_gemm_nt_contiguous_mxfp8(case.a, case.b, None, case.layout)
    own = case.owner >= 0
    assert torch.equal(d.view(torch.uint8)[own], case.d[own, :48])
    assert torch.equal(scales[own], case.scales[own])


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rule": ({}, {"rule": "up"}, "rule is 'up'"),
    "recipe": ({}, {"recipe": (1, 128, 32)}, r"recipe is \(1, 32\) for a and \(128, 32\) for b"),
    "alignment": ({}, {"alignment": 0}, "alignment is 0"),
    "hint": ({}, {"expected_m_for_psum_layout": 3}, "goes with use_psum_layout=True alone"),
    "layout": ({"layout": torch.zeros(3, dtype=torch.int32)}, {}, r"takes contiguous int32 \[256\]"),
    "d": ({"d": torch.zeros(256, 48, dtype=torch.uint8)}, {}, r"this call takes float8_e4m3fn \[256, 64\]"),
    "scales": ({"scales": torch.zeros(256, 2, dtype=torch.int32)}, {}, "MN-major|have shape"),
    "scale dtype": ({"scales": torch.zeros(256, 1)}, {}, "scale factors are float32"),
    "elsewhere": ({"scales": torch.zeros(256, 1, dtype=torch.int32, device="meta")}, {}, "different devices"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    spoilt, options, message = REFUSED[what]
    case = Case(GroupedGemm("contiguous", (5, 3), 64, 64, "mxf8"), 5)
    case.__dict__.update(spoilt)
    with cute_kernels.emulate("sm_100a") as emulation:
        for _ in range(2):  # a refusal must not be remembered as something else
            with pytest.raises(ArgumentError, match=message):
                case.run(**options)
    assert not emulation.reports
    assert what == "d" or bool((case.d == POISON).all())


def test_columns_that_are_not_whole_16_bytes() -> None:
    case = Case(GroupedGemm("contiguous", (5, 3), 72, 64, "mxf8"), 5)
    with cute_kernels.emulate("sm_100a"), pytest.raises(ArgumentError, match=r"N is 72 .* a multiple of 16"):
        case.run()


def test_scales_over_an_input() -> None:
    case = Case(GroupedGemm("contiguous", (5, 3), 64, 64, "mxf8"), 5)
    case.scales = case.a[1][:, :1]
    with cute_kernels.emulate("sm_100a"), pytest.raises(ArgumentError, match="share memory with a's scale"):
        case.run()


def test_what_is_built() -> None:
    shapes = (v.shape for v in sm100.variants("sm_100a"))
    variants = [s for s in shapes if s.grouped and s.quantized and s.cta_group == 1]
    built = {(s.family_dtype, s.grouping, s.d_dtype) for s in variants}
    assert built == {(family, by, "mxf8") for family in FAMILIES for by in ("indices", "sizes")}
    assert len(variants) == len(built)
