"""Operands of products to try kernels on, in every format: random elements, and a random scale factor a block."""

from __future__ import annotations

from typing import Any

import torch

from cute_kernels.device.umma_formats import FORMATS, UE8M0, Format, Operand
from cute_kernels.formats import dequantize
from cute_kernels.scale_factors import pack_for_kernel

SCALE_EXPONENTS = (127 - 30, 127 + 30)  # UE8M0 bytes; far from where a float32 sum overflows or is subnormal
LINE_BYTES = 32  # that the distance between lines is a multiple of, for every format


def operands(
    kind: str, m: int, n: int, k: int, layout: str, generator: torch.Generator, device: str
) -> tuple[Any, Any, torch.Tensor, torch.Tensor]:
    """Random A and B as the operation of a layout ("nt", ...) takes them, and their values [m, k] and [n, k].

    kind: what kernels call the operands' formats, a key of umma_formats.FORMATS. The values are float64.
    """
    form = FORMATS[kind]
    a, exact_a = operand(form, form.a, (m,), k, layout[0] == "t", generator, device)
    b, exact_b = operand(form, form.b, (n,), k, layout[1] == "n", generator, device)
    return a, b, exact_a, exact_b


def recipe(kind: str) -> tuple[int, int, int] | None:
    """The recipe that a call needs for the operands' granularity to be understood; None: it goes without saying."""
    form = FORMATS[kind]
    return (1, 1, 32) if form.kind == "mxf8f6f4" and form.a.granularity == form.b.granularity == 32 else None


def operand(
    form: Format,
    of: Operand,
    rows: tuple[int, ...],
    k: int,
    transposed: bool,
    generator: torch.Generator,
    device: str,
) -> tuple[Any, torch.Tensor]:
    """A random operand [*rows, k], or transposed, of one matrix or of several, and its values [*rows, k] in float64.

    Several matrices have a global scale each, if the format has one.
    """
    if not of.granularity:
        elements = torch.randn(*rows, k, generator=generator).to(torch.bfloat16)
        return _lines(elements, transposed, device), elements.double().to(device)
    nbytes = of.bytes_in_memory(k)
    elements = torch.randint(0, 256, (*rows, nbytes), generator=generator, dtype=torch.uint8)
    if nbytes == k:
        elements[elements & 0x7F == 0x7F] = 0  # NaN
        elements = elements.view(torch.float8_e4m3fn)
    blocks = (*rows, -(-k // of.granularity))
    if form.scale == UE8M0:
        low, high = SCALE_EXPONENTS
        scales = torch.randint(low, high + 1, blocks, generator=generator, dtype=torch.uint8)
    else:
        codes = torch.randint(0, 0x7F, blocks, generator=generator, dtype=torch.uint8)
        scales = codes.view(torch.float8_e4m3fn)  # all that are numbers, and without a sign
    factor = torch.rand(rows[:-1], generator=generator) + 0.5 if form.global_scales else None
    values = dequantize(elements, scales, group=(1, of.granularity), global_scale=factor, dtype=torch.float64)
    # Packed on the device: a copy from one device to another drops the padding between its columns.
    words = pack_for_kernel(scales.to(device), rows[-1], k, gran_k=of.granularity)
    given = (_lines(elements, transposed, device), words.mT if transposed else words)
    return given if factor is None else (*given, factor.to(device)), values.to(device)


def _lines(elements: torch.Tensor, transposed: bool, device: str) -> torch.Tensor:
    """The elements, or their transpose, in lines as far apart as TMA wants them."""
    lines = elements.mT if transposed else elements
    step = LINE_BYTES // elements.element_size()
    *outer, width = lines.shape
    wide = torch.zeros(*outer, -(-width // step) * step, dtype=elements.dtype)
    wide[..., :width] = lines
    return wide.to(device)[..., :width]
