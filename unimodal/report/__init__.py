"""The page of a run: results, curves, samples, attention, parameters and config in one self-contained HTML file."""

from unimodal.report.page import Report

__all__ = ["Report"]
