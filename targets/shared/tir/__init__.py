"""Kernels: every function here writes one TIR PrimFunc with a plain C signature."""
