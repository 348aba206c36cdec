"""A call of a GEMM whose result is quantized, from its operands to a launch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from cute_kernels.formats import E4M3, MX_GROUP, NVFP4_GROUP, Rule
from cute_kernels.heuristics import GemmProblem

from .arguments import Tiled
from .errors import ArgumentError
from .gemm import PARAMETERS, inputs_and_factors
from .gemm_operands import MXFP8, NVFP4, Given, OperandFormat, kind, names, operand
from .plan import Ahead, Call, Plan
from .scale_outputs import ScaleOutput, SfLayout
from .supported import QUANTIZED, require_k_major, require_operands
from .tensors import (
    TMA_ALIGNMENT,
    describe,
    require_aligned,
    require_one_device,
    require_rows,
    round_up,
    tiled,
)

Quantized = tuple[torch.Tensor, torch.Tensor]

# What the kernel adds to the bits of a group's largest magnitude before it takes the exponent, by rule: enough to
# carry into it where E4M3's largest mantissa is exceeded, or nothing.
CARRY: dict[Rule, int] = {"ceil": 0x7FFFFF - E4M3.max_mantissa, "floor": 0}


def require_known(rule: Rule, layout: SfLayout) -> None:
    """Refuse other rules and layouts of scale factors."""
    if rule not in CARRY or layout not in ("packed", "blocked"):
        raise ArgumentError(
            f"rule is {rule!r} and sf_layout {layout!r}; rules are 'ceil' and 'floor', "
            "layouts 'packed' and 'blocked'"
        )


def require_pair(out: Any) -> None:
    """Refuse a given output that is no pair."""
    if out is not None and not (isinstance(out, tuple | list) and len(out) == 2):
        given = f"{len(out)} of them" if isinstance(out, tuple | list) else f"a {type(out).__name__}"
        raise ArgumentError(f"out is {given}; it is a pair, D and its scale factors, or left out")


@dataclass(frozen=True)
class Target:
    """What a product is quantized to: as an operand, and what kernels call it.

    group: columns that share a scale factor. columns: what N must be a multiple of, whole 16 bytes.
    """

    format: OperandFormat
    d_dtype: str
    allocated: torch.dtype
    group: int

    @property
    def columns(self) -> int:
        return TMA_ALIGNMENT * self.format.packed


TO_MXFP8 = Target(MXFP8, "mxf8", torch.float8_e4m3fn, MX_GROUP)
TO_NVFP4 = Target(NVFP4, "nvf4", torch.uint8, NVFP4_GROUP)


class QuantizedGemmRequest:
    """(D, its scale factors) = quantize(A @ B^T), for given A and B, and D and scale factors given or not.

    Everything that can be refused is refused when it is made. It holds no tensor, as GemmRequest does not.
    """

    def __init__(
        self,
        a: Given,
        b: Given,
        out: Quantized | None,
        granularities: tuple[int | None, int | None],
        rule: Rule,
        layout: SfLayout,
        target: Target = TO_MXFP8,
        global_scale: torch.Tensor | None = None,
    ) -> None:
        """Check a call and choose its kernel.

        out: like what every run writes, None if the runs allocate it. rule: of MXFP8. global_scale: of NVFP4.
        """
        require_known(rule, layout)
        require_pair(out)
        left, right = operand("a", a, granularities[0]), operand("b", b, granularities[1])
        operands, what = kind(left, right), f"gemm_nt_{target.format.name.lower()}"
        require_operands(operands, QUANTIZED[target.d_dtype], what)
        for given in (left, right):
            require_k_major(given, what)
        self._m, self._n, self._k = left.mn, right.mn, left.k
        self._layout, self._rule, self._target = layout, rule, target
        self._scales = ScaleOutput(self._m, -(-self._n // target.group), layout)
        if self._n % target.columns:
            raise ArgumentError(
                f"N is {self._n}; a D in {target.format.name} takes multiples of {target.columns}. Pad b with rows of "
                "zeros"
            )
        tensors = dict([*left.tensors(), *right.tensors()])
        if target is TO_NVFP4:
            tensors["d's global scale"] = _require_global_scale(global_scale)
        if out is not None:
            tensors |= {"d": out[0], "d's scale factors": out[1]}
        self._device = require_one_device(tensors)
        if out is not None:
            self._require_out(*out)
        self._plan = None
        if 0 in (self._m, self._n, self._k):
            return
        self._inputs, self._factors = inputs_and_factors(left, right)
        if global_scale is not None:
            self._factors["d's global scale"] = Tiled(global_scale.data_ptr(), 4)
        if out is not None:
            self._call(*out)
        majors = left.major, right.major
        problem = GemmProblem(self._m, self._n, self._k, operands, target.d_dtype, False, *majors)
        self._plan = Plan(what, problem, self._device)

    def run(self, out: Quantized | None, packing: Ahead | None = None) -> Quantized:
        """Launch on the current stream, into `out` or new tensors; return them. packing: what goes ahead of it."""
        d, scales = self._allocate() if out is None else out
        if self._plan is None:
            d.view(torch.uint8).zero_()
            scales.zero_()
        else:
            self._plan.launch(d, self._call, scales, ahead=(packing,))
        return d, scales

    @property
    def _d_shape(self) -> tuple[int, int]:
        """Items of D, of which two elements of E2M1 are one."""
        return self._m, self._n // self._target.format.packed

    def _allocate(self) -> Quantized:
        d = torch.empty(self._d_shape, dtype=self._target.allocated, device=self._device)
        return d, self._scales.allocate(self._device)

    def _require_out(self, d: torch.Tensor, scales: torch.Tensor) -> None:
        """Refuse outputs of other dtypes, shapes or strides."""
        dtypes = self._target.format.dtypes
        if d.dtype not in dtypes or tuple(d.shape) != self._d_shape:
            raise ArgumentError(f"d is {describe(d)}; this call takes {names(dtypes)} {list(self._d_shape)}")
        require_rows(d, "d")
        self._scales.require(scales)

    def _call(self, d: torch.Tensor, scales: torch.Tensor) -> Call:
        result, written = tiled(d), self._scales.tiled(scales)
        inputs = {**self._inputs, **self._factors}
        for name, output, others in (
            ("d", result, inputs),
            ("d's scale factors", written, {**inputs, "d": result}),
        ):
            for other, tensor in others.items():
                if tensor.overlaps(output):
                    raise ArgumentError(
                        f"{name} shares memory with {other} ({tensor} and {output}). Give another"
                    )
        maps = {PARAMETERS[name]: tensor for name, tensor in {**self._inputs, "d": result}.items()}
        numbers = {PARAMETERS[name]: factor.address for name, factor in self._factors.items()}
        numbers |= {"m": self._m, "n": self._n, "k": self._k, "sfd": written.address}
        numbers |= {"sfd_blocked": int(self._layout == "blocked")}
        numbers |= {"sfd_carry": CARRY[self._rule]} if self._target is TO_MXFP8 else {}
        outputs = {
            "d": replace(result, row_bytes=round_up(result.row_bytes, TMA_ALIGNMENT)),
            "d's scale factors": written,
        }
        return Call({**maps, **numbers}, {**inputs, **outputs})


def _require_global_scale(scale: Any) -> torch.Tensor:
    """Return a global scale. Refuse what is not one float32."""
    if not isinstance(scale, torch.Tensor) or scale.dtype != torch.float32 or scale.numel() != 1:
        given = describe(scale) if isinstance(scale, torch.Tensor) else repr(scale)
        raise ArgumentError(
            f"d's global scale is {given}; NVFP4 takes one float32 tensor of one element, a multiplier"
        )
    require_aligned(Tiled(scale.data_ptr(), 4), "d's global scale", 4)
    return scale
