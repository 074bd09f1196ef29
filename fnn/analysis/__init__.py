"""Analysis of networks: summaries, non-finite values, FLOPs, curvature and plots."""

from fnn.analysis import curvature, plot
from fnn.analysis.flops import count_flops
from fnn.analysis.nan_report import nan_report
from fnn.analysis.summary import summary

__all__ = ["count_flops", "curvature", "nan_report", "plot", "summary"]
