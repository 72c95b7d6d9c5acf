"""The report: a JSON document, and the same as one HTML page."""

from qcompiler.report.build import build_report, precision
from qcompiler.report.html import render_html

__all__ = ["build_report", "precision", "render_html"]
