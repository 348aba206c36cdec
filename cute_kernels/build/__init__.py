"""Ahead-of-time build: variants of kernels in, cubins, PTX and a manifest out."""
