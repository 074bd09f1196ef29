"""What schedules and the plateau should compute: closed forms in exact shares and float64.

Nothing here imports jax or fnn. One count at a time; steps are Python ints and their shares
fractions, so none is rounded before the last.
"""

from bisect import bisect_right
from fractions import Fraction
from math import pi, sin, sqrt


def constant(count, value):
    return value


def share(count, begin, steps):
    """How much of the `steps` after `begin` has passed; all of no steps."""
    passed = Fraction(count) - Fraction(begin)
    if passed < 0:
        return Fraction(0)
    return passed / Fraction(steps) if passed < steps else Fraction(1)


def line(a, b, part):
    return a * float(1 - part) + b * float(part)


def wave(a, b, part):
    """Half a cosine from a to b: (1 + cos(pi part)) / 2 = sin(pi (1 - part) / 2)^2 of a."""
    left = sin(pi / 2 * float(1 - part)) ** 2
    return a * left + b * (1 - left)


def linear(count, init_value, end_value, transition_steps, transition_begin=0):
    return line(init_value, end_value, share(count, transition_begin, transition_steps))


def polynomial(count, init_value, end_value, power, transition_steps, transition_begin=0):
    left = float(1 - share(count, transition_begin, transition_steps)) ** power
    return init_value * left + end_value * (1 - left)


def exponential(
    count,
    init_value,
    transition_steps,
    decay_rate,
    transition_begin=0,
    staircase=False,
    end_value=None,
):
    passed = max(count - transition_begin, 0)
    steps = passed // transition_steps if staircase else passed / transition_steps
    value = init_value * decay_rate**steps
    if end_value is None:
        return value
    return max(value, end_value) if decay_rate < 1 else min(value, end_value)


def cosine(count, init_value, decay_steps, alpha=0.0, exponent=1.0):
    left = wave(1, 0, share(count, 0, decay_steps)) ** exponent
    return init_value * (alpha + (1 - alpha) * left)


def warmup_constant(count, init_value, peak_value, warmup_steps):
    return linear(count, init_value, peak_value, warmup_steps)


def warmup_linear(count, init_value, peak_value, warmup_steps, decay_steps, end_value=0.0):
    if count < warmup_steps:
        return linear(count, init_value, peak_value, warmup_steps)
    return linear(count, peak_value, end_value, decay_steps - warmup_steps, warmup_steps)


def warmup_cosine(
    count, init_value, peak_value, warmup_steps, decay_steps, end_value=0.0, exponent=1.0
):
    if count < warmup_steps:
        return linear(count, init_value, peak_value, warmup_steps)
    left = wave(1, 0, share(count, warmup_steps, decay_steps - warmup_steps)) ** exponent
    return peak_value * left + end_value * (1 - left)


def warmup_exponential(count, init_value, peak_value, warmup_steps, *decay, **more):
    if count < warmup_steps:
        return linear(count, init_value, peak_value, warmup_steps)
    return exponential(count - warmup_steps, peak_value, *decay, **more)


def piecewise_constant(count, values, boundaries):
    return values[bisect_right(boundaries, count)]


def piecewise_interpolate(count, values, boundaries, shape=line):
    """values[0] at count 0, values[i] at boundaries[i - 1], the last one ever after."""
    ends = [0, *boundaries]
    i = bisect_right(ends, count)
    if i == len(ends):
        return values[-1]
    return shape(values[i - 1], values[i], share(count, ends[i - 1], ends[i] - ends[i - 1]))


def one_cycle(
    count,
    transition_steps,
    peak_value,
    pct_start=0.3,
    pct_final=None,
    div_factor=25.0,
    final_div_factor=1e4,
    shape=wave,
):
    first = peak_value / div_factor
    last = first / final_div_factor
    up, end = pct_start * transition_steps, transition_steps
    if pct_final is None:
        return piecewise_interpolate(count, [first, peak_value, last], [up, end], shape)
    down = pct_final * transition_steps
    return piecewise_interpolate(count, [first, peak_value, first, last], [up, down, end], shape)


def restarts(count, init_value, decay_steps, t_mult=1, alpha=0.0):
    """Loshchilov & Hutter (2017), equation 5: whole cycles are taken off until count is in one."""
    length = decay_steps
    if t_mult == 1:
        count %= length
    while count >= length:
        count -= length
        length *= t_mult
    return wave(init_value, alpha * init_value, share(count, 0, length))


def inverse_sqrt(count, peak_value, warmup_steps, init_value=0.0):
    if count < warmup_steps:
        return linear(count, init_value, peak_value, warmup_steps)
    first = max(warmup_steps, 1)
    return peak_value * sqrt(first / max(count, first))
