"""The oracle of the plateau."""

from math import inf, isfinite


def reduce_on_plateau(
    values,
    factor=0.1,
    patience=10,
    rtol=1e-4,
    atol=0.0,
    cooldown=0,
    accumulation_size=1,
    min_scale=0.0,
):
    """The scale after each value: after `patience` means without improvement it shrinks."""
    scale, best, bad, cooling, scales, window = 1.0, inf, 0, 0, [], []
    for value in values:
        window.append(value)
        if len(window) == accumulation_size:
            mean = sum(window) / len(window)
            window = []
            if mean < best - (rtol * abs(best) + atol if isfinite(best) else 0):
                best, bad = mean, 0
            else:
                bad += 1
            if cooling > 0:
                cooling, bad = cooling - 1, 0
            elif bad >= patience:
                scale, bad, cooling = max(scale * factor, min_scale), 0, cooldown
        scales.append(scale)
    return scales
