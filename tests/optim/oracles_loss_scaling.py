"""Oracles of loss scaling."""


def loss_scale(scale, finite, period, factor, good=0):
    """The scale after each of a run of steps, of which some were finite."""
    scales = []
    for ok in finite:
        good = good + 1 if ok else 0
        if not ok:
            scale = max(scale / factor, 1.0)
        elif good == period:
            scale, good = scale * factor, 0
        scales.append(scale)
    return scales
