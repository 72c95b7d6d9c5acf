"""Run bundles: numpy and ctypes only."""

from qcompiler.runtime.loader import BundleLoadError, Session, load

__all__ = ["BundleLoadError", "Session", "load"]
