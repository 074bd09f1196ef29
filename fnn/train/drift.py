"""A callback that watches how far a run's data or outputs drift from a reference."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fnn import metrics
from fnn.core import checks, errors
from fnn.train.events import Event, Stop


@errors.named
def drift(
    values: Callable[[Event], jax.Array],
    reference: Mapping[str, jax.Array],
    *,
    statistic: str = "psi",
    threshold: float | None = 0.25,
    then: str = "warn",
    every: int | None = None,
    report: Callable[[Event, np.ndarray], Any] | None = None,
) -> Callable[[Event], Stop | None]:
    """A callback of `fit` that compares values of a run with a reference, feature by feature.

    - `values(event)`: what is compared, [N, ...]: of the data now, or of the network's outputs, as
      `lambda event: net(event.train_state.params, images)`.
    - `reference`, `statistic`: as in `fnn.metrics.drift`; the statistic is "psi" or "ks".
    - `threshold`: the drift of the worst feature above which something happens; None is none.
    - `then`: what happens: "warn", a RuntimeWarning, or "stop", the end of the run.
    - `every`: it measures every so many steps; None, after each evaluation.
    - `report(event, drift)`: called with each measurement, [...] on the host, for a log.

    It waits for the device when it measures, and then alone. Raises OptionError for other options,
    and what `fnn.metrics.drift` raises.

    >>> from types import SimpleNamespace
    >>> import fnn
    >>> x = np.linspace(0, 1, 500)
    >>> watch = drift(lambda event: x / 2, fnn.metrics.histogram(x), then="stop")
    >>> watch(SimpleNamespace(step=7, evaluation={"eval/loss": 0.1}, ended="")).why
    'psi 3.49 above 0.25 at step 7'
    """
    checks.function("values", values, "an event")
    checks.choice("statistic", statistic, ("psi", "ks"))
    checks.choice("then", then, ("warn", "stop"))
    if threshold is not None:
        checks.number("threshold", threshold, 0.0, float("inf"))
    if every is not None:
        every = checks.count("every", every)
    if report is not None:
        checks.function("report", report, "an event and its drift")
    metric = metrics.drift(reference, statistic)
    measure = jax.jit(lambda x: metric.value(x, None))

    measured_at = -1

    def watch(event: Event) -> Stop | None:
        nonlocal measured_at
        due = event.evaluation if every is None else event.step % every == 0
        # A step, its evaluation and the end of the run may be three events.
        again, measured_at = event.step == measured_at, -1 if event.ended else measured_at
        if not due or again:
            return None
        measured_at = -1 if event.ended else event.step
        found = np.asarray(measure(values(event)))
        if report is not None:
            report(event, found)
        if threshold is None or not found.size or not found.max() > threshold:
            return None
        worst = np.unravel_index(found.argmax(), found.shape)
        why = f"{statistic} {found.max():.2f} above {threshold:g} at step {event.step}"
        why += f", of feature {', '.join(map(str, worst))}" if worst else ""
        if then == "stop":
            return Stop(why)
        warnings.warn(f"drift: {why}", RuntimeWarning, stacklevel=2)
        return None

    # No step is a multiple of the largest int: then evaluations alone call it.
    watch.every = sys.maxsize if every is None else every
    return watch
