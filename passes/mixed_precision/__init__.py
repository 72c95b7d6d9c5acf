"""Mixed precision: what to choose between (candidates), what each choice costs and loses (sensitivity), the solvers.

Not a pass; `qcompiler.passes.assign_bits` puts the parts together.
"""
