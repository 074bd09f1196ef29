"""The table of all optimizers."""

from tests.optim import rows_adaptive, rows_curvature, rows_first, rows_scaled, rows_wrappers

ROWS = {
    **rows_first.ROWS,
    **rows_adaptive.ROWS,
    **rows_scaled.ROWS,
    **rows_curvature.ROWS,
    **rows_wrappers.ROWS,
}
