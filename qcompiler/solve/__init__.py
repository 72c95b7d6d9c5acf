"""Solvers that choose the codes of weights from moments of their inputs: arrays in, arrays out."""
