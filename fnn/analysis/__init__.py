"""Analysis of networks and their arrays: tables, profiles, NaN, FLOPs, curvature and plots."""

from fnn.analysis import curvature, plot
from fnn.analysis.curves import curves
from fnn.analysis.flops import count_flops
from fnn.analysis.nan_report import nan_report
from fnn.analysis.overview import overview
from fnn.analysis.profile import profile
from fnn.analysis.summary import summary

__all__ = [
    "count_flops", "curvature", "curves", "nan_report", "overview", "plot", "profile", "summary",
]  # fmt: skip
