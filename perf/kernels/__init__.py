"""Kernels that measure what a GPU reaches."""
