"""Lowering, written once for all targets: plan, TIR kernels, packing, code generation."""
