"""Calibration: data, streaming statistics, ranges."""
