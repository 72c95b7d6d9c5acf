"""Kernels written for grids of threads."""
