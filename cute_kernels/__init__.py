"""GPU kernels in the CuTe Python DSL, compiled ahead of time, and an emulator that runs them with no GPU."""

__version__ = "0.1.0"
