"""Drift: how far a model's inputs and outputs are now from what they were at training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.types import Scalar, Shape, Tree
from fnn.losses.inputs import array
from fnn.metrics.metric import Metric, add, is_real, kept, metric, no_sum, total


class KolmogorovSmirnov(NamedTuple):
    """The largest distance of two distribution functions, and its p-value: each [...]."""

    statistic: jax.Array
    pvalue: jax.Array


@errors.named
def histogram(values: ArrayLike, bins: int | ArrayLike = 10) -> dict[str, jax.Array]:
    """A summary of each feature's values, to compare later ones with: [N, ...] -> two arrays.

        {"edges": [..., E], "counts": [..., E + 2]}

    Bin 0 holds values up to the first edge, bin b those in (edge b - 1, edge b], bin E those above
    the last, and bin E + 1 holds NaN, so that values that go missing are a change as well. Where
    edges coincide, their common value has a bin of its own. Made once, at training, it is a plain
    tree that a checkpoint keeps; `drift` and `fnn.analysis.plot.drift` take it.

    - `values`: real numbers of N examples, at least one.
    - `bins`: how many, 2 or more, with edges at the quantiles k / bins of each feature: the
      smallest value that no less than this share of the values do not exceed. Or the edges, rising:
      [E] for all features, as `jnp.arange(classes + 1) - 0.5` for classes, or [..., E] for each,
      as those of another histogram.

    Raises ShapeError without examples or for edges of another shape, DtypeError for values that
    are not real, OptionError for fewer than 2 bins or edges that fall.

    >>> reference = histogram(jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), bins=3)
    >>> print(reference["edges"], reference["counts"])
    [2. 4.] [2. 2. 2. 0.]
    """
    x = _values("values", values)
    if isinstance(bins, (int, np.integer)):
        edges = _quantiles(x, checks.count("bins", bins, least=2))
    else:
        edges = _edges(bins, x.shape[1:])
    counts = _counted(edges, x, jnp.ones(x.shape, bool), None)
    return {"edges": edges, "counts": counts.astype(x.dtype)}


@errors.named
def population_stability_index(
    reference: ArrayLike,
    current: ArrayLike,
    bins: int | ArrayLike | None = 10,
    *,
    epsilon: Scalar = 1e-4,
) -> jax.Array:
    """The population stability index (PSI) of each feature: [N, ...] and [M, ...] -> [...].

        PSI = sum over bins b of (q_b - p_b) log(q_b / p_b)

    p_b and q_b are the shares of the reference's and of the current values in bin b; a share below
    `epsilon` counts as epsilon, since an empty bin would make the index infinite. It is never
    negative, and the sum of both Kullback-Leibler divergences, in nats. By a rule of credit
    scoring, below 0.1 nothing has changed, and above 0.25 much has. Samples of one distribution
    have about (bins - 1) (1 / N + 1 / M), so 10 bins take several hundred examples.

    - `bins`: as in `histogram`, made from the reference. None if both are counts already,
      [..., bins], such as those of two histograms, or of classes.
    - `epsilon`: above 0.

    Counts without examples give NaN. Raises what `histogram` raises, and ShapeError for features
    that differ. Yurdakul, Statistical properties of population stability index, 2018.

    >>> print(population_stability_index(jnp.array([50, 50]), jnp.array([25, 75]), bins=None))
    0.27465308
    """
    checks.positive("epsilon", epsilon)
    if bins is not None:
        reference, current = _same_features(reference, current)
        summary = histogram(reference, bins)
        reference = summary["counts"]
        current = histogram(current, summary["edges"])["counts"]
    then, now = _values("reference", reference), _values("current", current)
    if then.shape != now.shape:
        raise errors.ShapeError(
            f"counts [..., bins] of the same bins, {then.shape}",
            f"current {now.shape}",
            "count both with the same edges",
        )
    return _psi(then, now, epsilon)


@errors.named
def kolmogorov_smirnov(reference: ArrayLike, current: ArrayLike) -> KolmogorovSmirnov:
    """The two-sample Kolmogorov-Smirnov test of each feature: [N, ...] and [M, ...] -> [...].

        D = max over x of |F(x) - G(x)|
        pvalue = 2 sum over j > 0 of (-1)**(j - 1) exp(-2 j**2 z**2),    z = D sqrt(N M / (N + M))

    F and G are the shares of values up to x. D is exact, ties included; NaN counts as one value
    above all others. The p-value, how often samples of one distribution are this far apart, is its
    limit for large samples: too large for fewer than a hundred examples or for tied values. With
    many examples the p-value of any change is about 0, so watch D.

    Raises ShapeError for features that differ or a sample without examples, DtypeError for values
    that are not real. Smirnov, Table for estimating the goodness of fit of empirical
    distributions, 1948.

    >>> found = kolmogorov_smirnov(jnp.arange(100.0), jnp.arange(100.0) + 30)
    >>> print(f"{found.statistic:.3f} {found.pvalue:.5f}")
    0.300 0.00025
    """
    a, b = _same_features(reference, current)
    dtype = jnp.promote_types(a.dtype, b.dtype)
    n, m = a.shape[0], b.shape[0]
    x = jnp.concatenate([a.astype(dtype), b.astype(dtype)])
    own = jnp.concatenate([jnp.ones(a.shape, jnp.int32), jnp.zeros(b.shape, jnp.int32)])
    x, own = jax.lax.sort((x, own), dimension=0, num_keys=1)
    below = jnp.cumsum(own, axis=0)
    place = jnp.arange(1, n + m + 1, dtype=jnp.int32).reshape(-1, *[1] * (x.ndim - 1))
    gaps = jnp.abs(below.astype(dtype) / n - (place - below).astype(dtype) / m)
    differ = (x[1:] != x[:-1]) & ~(jnp.isnan(x[1:]) & jnp.isnan(x[:-1]))
    last = jnp.concatenate([differ, jnp.ones((1, *x.shape[1:]), bool)])  # of its ties
    d = jnp.where(last, gaps, 0).max(0)
    return KolmogorovSmirnov(d, _kolmogorov(d * (n / (n + m) * m) ** 0.5))


@builder
def drift(reference: Mapping[str, jax.Array], statistic: str = "psi") -> Metric:
    """The drift of each feature of the outputs [B, ...] from a reference, over a stream: [...].

    - `reference`: of the same features, from `histogram`.
    - `statistic`: "psi", `population_stability_index` of the bins; "ks", the largest distance of
      the distribution functions at the edges, which falls short of `kolmogorov_smirnov` by no more
      than the largest share that a bin has in the reference; "counts", those of the bins,
      [..., bins], for `fnn.analysis.plot.drift`.

    The labels are not looked at, so pass None, and the inputs as the outputs to watch inputs.
    `fnn.metrics.after` takes what is watched from the outputs, and `windowed` and `decayed` forget
    what is long ago. Nothing accumulated gives NaN, or no counts.

    Raises InputError or ShapeError for a reference that is no histogram, OptionError for another
    statistic; ShapeError or DtypeError for outputs of other features or not real.

    >>> import fnn
    >>> images = jax.random.normal(jax.random.key(0), (1000, 2))
    >>> recent = fnn.metrics.windowed(drift(histogram(images)), 4)
    >>> accumulator = recent.update(recent.init(), images + jnp.array([0.0, 1.0]), None)
    >>> print(recent.compute(accumulator) > 0.25)
    [False  True]
    """
    checks.choice("statistic", statistic, tuple(STATISTICS))
    edges, expected = _reference(reference)
    measure, features = STATISTICS[statistic], edges.shape[:-1]

    def init():
        return {"counts": no_sum(expected.shape)}

    def update(accumulator, outputs, labels, mask, weights):
        x = _values("outputs", outputs, least=0)
        if x.shape[1:] != features:
            raise errors.ShapeError(
                f"outputs [B, ...] with the features {features} of the reference",
                f"outputs {x.shape}",
                "compare the same features, examples first",
            )
        counts = _counted(edges, x, *kept(mask, weights, x.shape))
        return {"counts": add(accumulator["counts"], counts)}

    def compute(accumulator):
        counts = total(accumulator["counts"])
        return measure(expected.astype(counts.dtype), counts)

    return metric("drift", init, update, compute)


# --- statistics of counts


def _psi(reference: jax.Array, current: jax.Array, epsilon: Scalar = 1e-4) -> jax.Array:
    least = jnp.asarray(epsilon, reference.dtype)
    p, q = (jnp.maximum(x / x.sum(-1, keepdims=True), least) for x in (reference, current))
    return jnp.sum((q - p) * jnp.log(q / p), axis=-1)


def _ks(reference: jax.Array, current: jax.Array) -> jax.Array:
    p, q = (jnp.cumsum(x, -1) / x.sum(-1, keepdims=True) for x in (reference, current))
    return jnp.abs(q - p).max(-1)


STATISTICS = {"psi": _psi, "ks": _ks, "counts": lambda reference, current: current}


def _kolmogorov(z: jax.Array) -> jax.Array:
    """P(Z > z) of Kolmogorov's distribution: the series of large z, and of small z its dual.

    Each is exact to 1e-13 on its side of 1 by five terms (Marsaglia, Tsang and Wang, Evaluating
    Kolmogorov's distribution, 2003, equation 1 and its transform).
    """
    j = jnp.arange(1, 6, dtype=z.dtype)
    z = z[..., None]
    signs = 2 * (j % 2) - 1
    large = 2 * jnp.sum(signs * jnp.exp(-2 * (j * z) ** 2), axis=-1)
    z = jnp.maximum(z, 0.1)  # below, 1 - P rounds to 0
    terms = jnp.exp(-((2 * j - 1) ** 2) * np.pi**2 / (8 * z**2))
    small = 1 - (2 * np.pi) ** 0.5 / z[..., 0] * terms.sum(-1)
    return jnp.where(z[..., 0] < 1, small, large)


# --- bins


@jax.jit
def _counted(edges: jax.Array, x: jax.Array, keep: jax.Array, w: jax.Array | None) -> jax.Array:
    """How many values of each feature are in each bin, int32, or weights: [..., E], [N, ...]."""
    edges = edges.astype(x.dtype)
    equal = edges[..., 1:] == edges[..., :-1]
    none = jnp.zeros((*edges.shape[:-1], 1), bool)
    again = jnp.concatenate([none, equal], axis=-1)
    first = jnp.concatenate([equal, none], axis=-1) & ~again  # of edges that coincide
    e, x = edges[None], x[..., None]
    place = jnp.where(first[None], e <= x, e < x).sum(-1, dtype=jnp.int32)
    size = edges.shape[-1] + 2
    place = jnp.where(jnp.isnan(x[..., 0]), size - 1, place)
    # A masked sum per bin, as in `calibration_error`.
    bins = jnp.arange(size, dtype=jnp.int32).reshape(*[1] * place.ndim, -1)
    own = (place[..., None] == bins) & keep[..., None]
    if w is None:
        return own.sum(0, dtype=jnp.int32)
    return jnp.where(own, w[..., None], 0).sum(0)


@jax.jit(static_argnums=1)
def _quantiles(x: jax.Array, bins: int) -> jax.Array:
    """[N, ...] -> [..., bins - 1], each one of the values, so that ties are equal to the bit."""
    ranked = jnp.sort(x, axis=0)  # NaN last
    n = jnp.sum(~jnp.isnan(x), axis=0, dtype=jnp.int32)[None]
    k = jnp.arange(1, bins, dtype=jnp.int32).reshape(-1, *[1] * (x.ndim - 1))
    at = n // bins * k + (n % bins * k + bins - 1) // bins - 1  # ceil(n k / bins) - 1
    return jnp.moveaxis(jnp.take_along_axis(ranked, jnp.maximum(at, 0), axis=0), 0, -1)


# --- what is taken


def _values(name: str, x: Any, least: int = 1) -> jax.Array:
    """[N, ...] with N at least `least`, in float32 or wider."""
    x = array(name, x)
    if not is_real(x):
        raise errors.DtypeError(f"{name} of real numbers", f"{name} {errors.show(x)}", "cast them")
    if x.ndim == 0 or x.shape[0] < least:
        wanted = f"{name} [N, ...]" + (", N at least 1" if least else "")
        raise errors.ShapeError(wanted, f"{name} {x.shape}", "put the examples along axis 0")
    return x.astype(jnp.result_type(float))


def _same_features(reference: Any, current: Any) -> tuple[jax.Array, jax.Array]:
    """The values of both."""
    a, b = _values("reference", reference), _values("current", current)
    if a.shape[1:] != b.shape[1:]:
        raise errors.ShapeError(
            f"current values [M, ...] with the features {a.shape[1:]} of the reference",
            f"current {b.shape}",
            "compare the same features, examples first",
        )
    return a, b


def _edges(bins: Any, features: Shape) -> jax.Array:
    edges = jnp.asarray(bins) if isinstance(bins, (list, tuple)) else array("bins", bins)
    if not is_real(edges):
        raise errors.DtypeError("bins of real numbers", f"bins {errors.show(edges)}", "cast them")
    if edges.ndim == 0 or edges.shape[:-1] not in ((), features) or not edges.shape[-1]:
        wanted = f"edges [E], or {(*features, 'E')}".replace("'", "")
        raise errors.ShapeError(wanted, f"bins {edges.shape}", "pass an int, or rising edges")
    known = None if isinstance(bins, jax.core.Tracer) else np.asarray(bins)
    if known is not None and (known[..., 1:] < known[..., :-1]).any():
        raise errors.OptionError("edges that rise", "some that fall", "sort them")
    edges = edges.astype(jnp.result_type(float))
    return jnp.broadcast_to(edges, (*features, edges.shape[-1]))


def _reference(reference: Tree) -> tuple[jax.Array, jax.Array]:
    mend = "pass fnn.metrics.histogram(values)"
    if not isinstance(reference, Mapping) or set(reference) != {"edges", "counts"}:
        wanted = "a reference {edges, counts}"
        raise errors.InputError(wanted, errors.show(reference), mend)
    edges, counts = (array(name, reference[name]) for name in ("edges", "counts"))
    if edges.ndim == 0 or counts.shape != (*edges.shape[:-1], edges.shape[-1] + 2):
        wanted = "a reference of edges [..., E] and counts [..., E + 2]"
        raise errors.ShapeError(wanted, errors.show({"edges": edges, "counts": counts}), mend)
    dtype = jnp.result_type(float)
    return edges.astype(dtype), counts.astype(dtype)
