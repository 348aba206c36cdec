"""GPU kernels written in the CuTe Python DSL, compiled ahead of time, and an emulator that runs them without a GPU."""

__version__ = "0.1.0"
