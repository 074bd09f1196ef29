"""Analysis of networks: summaries, profiles, FLOPs, rounding, NaN, curvature and plots."""

from fnn.analysis import curvature, plot
from fnn.analysis.flops import count_flops
from fnn.analysis.nan_report import nan_report
from fnn.analysis.profile import profile
from fnn.analysis.rounding import rounding
from fnn.analysis.summary import summary

__all__ = ["count_flops", "curvature", "nan_report", "plot", "profile", "rounding", "summary"]
