"""Estimates for the kernels of the sm80 family."""

from __future__ import annotations

from .common import Config, DequantizeProblem, Estimate


def nvfp4_dequantize(problem: DequantizeProblem, config: Config, num_sms: int) -> Estimate:
    """Estimate."""
    raise NotImplementedError
