"""Other ways to differentiate a loss: each replaces `jax.value_and_grad`.

    value, grads = jax.value_and_grad(fn)(params, batch)
    value, grads = accumulate(fn, k=4)(params, batch)

With `has_aux=True`, `fn` returns (value, aux), and the first of the results is that pair. The
argument `argnums` is differentiated (a tuple: all of these), the others are not. `fnn.train.step`
takes any of them as its `grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import is_key, widened, widest
from fnn.core.lengths import as_length, length_of, scaled, shortened
from fnn.core.origins import builder
from fnn.core.shapes import as_array, natives
from fnn.core.types import Key, Scalar, Tree
from fnn.losses.means import is_sum, scalar, weighed
from fnn.optim.arithmetic import as_dtype


@builder
def accumulate(
    fn: Callable,
    k: int,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    weight: Callable | None = None,
) -> Callable:
    """The gradient of a mean over a batch, computed on k parts of it one after the other.

        value = sum_i w_i fn(params, batch_i) / sum_i w_i        grads = its gradient

    The memory is that of one part. If fn is a mean over its batch, the results equal those of the
    whole batch, except that batch norm sees the parts.

    - `fn(params, batch, key, ...)`: arrays in the other arguments have the batch as their first
      axis and are split along it; a key is split, so parts draw different dropout. Close over
      everything else. It returns a scalar, or an `fnn.losses.Mean` (from `fnn.losses.mean` of
      masked or weighted losses), which knows its weight w_i.
    - `k`: the number of parts; it divides the batch.
    - `weight(params, batch, key, ...)`: w_i where fn returns a scalar, for instance the divisor of
      a masked mean, `lambda params, batch: batch["mask"].sum()`. By default all parts weigh alike,
      which is right for plain means. A batch that contains bools (masks) may count more in one part
      than in another, which a scalar does not show: then weights are required, `lambda *_: 1` if
      all parts do weigh alike.

    Sums are in float32 or wider; weights are constants to the gradient. A part of weight 0 does not
    count, whatever it contains. Floating aux (such as batch norm's statistics) is averaged by the
    same weights; each `Mean` in it is summed; other aux is the last part's.
    Raises ShapeError for a batch that k does not divide, OptionError for missing weights.

    >>> import fnn
    >>> def loss(w, batch):
    ...     return fnn.losses.mean(w * batch["x"], batch["mask"])
    >>> batch = {"x": jnp.arange(6.0), "mask": jnp.arange(6) < 4}
    >>> value, grad = accumulate(loss, k=2)(jnp.array(2.0), batch)
    >>> print(value, grad)
    3.0 1.5
    """
    checks.function("fn", fn, "params and a batch")
    k = checks.count("k", k)
    if weight is not None:
        checks.function("weight", weight, "the arguments of fn")

    def value_and_grad(*args, **kwargs):
        with errors.within("accumulate"):
            chosen, rest = separate(argnums, args, kwargs, or_complex=True)
            size = _batch_size(rest)
            if size % k:
                raise errors.ShapeError(
                    f"a batch that k={k} divides", f"{size} examples", "choose another k"
                )
        parts = jax.tree.map(lambda a: _cut(a, k), rest)
        grad_fn = jax.value_and_grad(weighed(of_chosen(fn, argnums), has_aux), has_aux=True)
        weight_of = None if weight is None else of_chosen(weight, argnums)

        def part(total, rest):
            (value, (aux, w)), grads = grad_fn(chosen, rest)
            if weight_of is not None:
                w = jnp.sum(jnp.asarray(weight_of(chosen, rest)), dtype=jnp.result_type(float))
            if w is None:
                with errors.within("accumulate"):
                    _no_bools(parts)
            return jax.tree.map(partial(_add, w), total, grads), (value, aux, w)

        zeros = jax.tree.map(lambda p: jnp.zeros_like(widened(p)), chosen)
        total, (value, aux, w) = jax.lax.scan(part, zeros, parts)
        whole = k if w is None else jnp.where(jnp.sum(w) == 0, 1, jnp.sum(w))
        grads = jax.tree.map(lambda t, p: _over(t, whole).astype(jnp.result_type(p)), total, chosen)
        out = jax.tree.map(partial(_mean, w), value), _joined(aux, w)
        return out if has_aux else out[0], as_argnums(argnums, grads)

    return value_and_grad


def _no_bools(parts: Tree) -> None:
    """Refuse a scalar loss of a batch that contains bools: it may be a masked mean."""
    if any(jnp.issubdtype(jnp.result_type(a), jnp.bool_) for a in _arrays(parts)):
        raise errors.OptionError(
            "the weights of the parts, for a batch that contains bools (masks)",
            "a scalar loss",
            "return fnn.losses.mean(losses, mask), or pass weight=, as "
            "lambda params, batch: batch['mask'].sum() (lambda *_: 1 where all weigh alike)",
        )


@builder
def sam(
    fn: Callable, rho: Scalar = 0.05, argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable:
    """Sharpness-aware minimization: the gradient at the worst point nearby.

        e = rho g / |g|, g = grad fn(params)        grads = grad fn(params + e)

    - `fn(params, ...)`: differentiated twice, once at each point; value and aux are those at
      params. It returns a scalar, or a `Mean` as in `accumulate`.
    - `rho`: the distance of that point, at least 0; the paper's default.

    |g| is over everything differentiated, in float32 or wider; where g is zero, e is zero.
    Foret et al. (2021), equations 2 and 3.

    >>> value, grad = sam(lambda w: jnp.sum(w**2), rho=0.5)(jnp.array([3.0, 4.0]))
    >>> print(value, grad)
    25.0 [6.6 8.8]
    """
    checks.function("fn", fn, "params")
    checks.number("rho", rho, 0.0, float("inf"))

    def value_and_grad(*args, **kwargs):
        with errors.within("sam"):
            chosen, rest = separate(argnums, args, kwargs, or_complex=True)
        whole = scalar(of_chosen(fn, argnums), has_aux)
        out, g = jax.value_and_grad(whole, has_aux=has_aux)(chosen, rest)
        length = length_of(*jax.tree.leaves(g))
        away = as_length(rho, length.root.dtype)

        def climb(p, g):
            return (widened(p) + scaled(jnp.conj(widened(g)), away, length)).astype(g.dtype)

        above = jax.tree.map(climb, chosen, g)
        grads, *_ = pair(jax.grad(whole, has_aux=has_aux)(above, rest), has_aux)
        return out, as_argnums(argnums, grads)

    return value_and_grad


@builder
def per_example_clip(
    fn: Callable,
    max_norm: Scalar,
    noise_multiplier: Scalar = 0.0,
    key: Key | None = None,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
) -> Callable:
    """The mean of per-example gradients, each clipped to a norm, with noise: differential privacy.

        gbar_i = g_i / max(1, |g_i| / C)        grads = (sum_i gbar_i + N(0, sigma^2 C^2)) / B

    - `fn(params, batch, ...)`: called with each example as a batch of one, so a mean loss works
      unchanged. Other arguments as in `accumulate`: arrays with the batch as first axis, keys.
    - `max_norm`: C, at least 0. |g_i| is over everything differentiated.
    - `noise_multiplier`: sigma, at least 0. 0, the default, adds none and promises no privacy.
    - `key`: the noise's key, a new one at each step. None derives it from the key among the
      arguments.

    Value and floating aux are means over the examples, weighted where fn returns a `Mean`, as in
    `accumulate`. Grads are divided by B whatever the weights, which are private too. The privacy
    guarantee of sigma, batch size and number of steps is not computed here. Raises RandomKeyError
    for noise without a key. Abadi et al. (2016), algorithm 1.

    >>> def loss(w, x):
    ...     return jnp.mean(w * x)
    >>> value, grad = per_example_clip(loss, max_norm=1.0)(jnp.array(2.0), jnp.array([0.5, 9.0]))
    >>> print(value, grad)
    9.5 0.75
    """
    checks.function("fn", fn, "params and a batch")
    checks.number("max_norm", max_norm, 0.0, float("inf"))
    checks.number("noise_multiplier", noise_multiplier, 0.0, float("inf"))
    if key is not None:
        key = checks.typed_key(key)

    def value_and_grad(*args, **kwargs):
        with errors.within("per_example_clip"):
            chosen, rest = separate(argnums, args, kwargs)
            size = _batch_size(rest)
            noise_key = _noise_key(key, noise_multiplier, rest)
        grad_fn = jax.value_and_grad(weighed(of_chosen(fn, argnums), has_aux), has_aux=True)

        def clipped(example):
            out, g = grad_fn(chosen, example)
            length = length_of(*jax.tree.leaves(g))
            most = as_length(max_norm, length.root.dtype)
            return out, jax.tree.map(lambda a: shortened(widened(a), most, length), g)

        examples = jax.tree.map(lambda a: _cut(a, size), rest)
        (value, (aux, w)), g = jax.vmap(clipped)(examples)
        total = jax.tree.map(lambda a: jnp.sum(a, 0), g)
        if noise_key is not None:
            keys = iter(jax.random.split(noise_key, max(len(jax.tree.leaves(total)), 1)))

            def noisy(a):
                sigma = as_dtype(noise_multiplier, a.dtype) * as_dtype(max_norm, a.dtype)
                return a + sigma * jax.random.normal(next(keys), a.shape, a.dtype)

            total = jax.tree.map(noisy, total)
        grads = jax.tree.map(lambda t, p: (t / size).astype(jnp.result_type(p)), total, chosen)
        out = jax.tree.map(partial(_mean, w), value), _joined(aux, w)
        return out if has_aux else out[0], as_argnums(argnums, grads)

    return value_and_grad


# --- arguments


def separate(
    argnums: int | tuple[int, ...], args: tuple, kwargs: Mapping, or_complex: bool = False
) -> tuple[Any, tuple[tuple, dict]]:
    """The differentiated arguments as a tuple, and the others, with None for those."""
    many = argnums if isinstance(argnums, tuple) else (argnums,)
    good = all(isinstance(i, int) and -len(args) <= i < len(args) for i in many)
    if not good:
        raise errors.OptionError(
            f"argnums of the {len(args)} positional arguments",
            errors.show(argnums),
            "pass params by position, and argnums=0",
        )
    at = [i % len(args) for i in many]
    chosen = tuple(args[i] for i in at)
    checks.floating_leaves("what is differentiated", chosen, or_complex=or_complex)
    rest = tuple(None if i in at else a for i, a in enumerate(args)), dict(kwargs)
    return chosen, natives(rest, "arguments", others=True)


def of_chosen(fn: Callable, argnums: int | tuple[int, ...]) -> Callable:
    """fn as a function of the differentiated tuple and of the rest."""
    many = argnums if isinstance(argnums, tuple) else (argnums,)

    def call(chosen, rest):
        args, kwargs = list(rest[0]), rest[1]
        for i, value in zip(many, chosen, strict=True):
            args[i] = value
        return fn(*args, **kwargs)

    return call


def as_argnums(argnums: int | tuple[int, ...], grads: tuple) -> Tree:
    return grads if isinstance(argnums, tuple) else grads[0]


def pair(out: Any, has_aux: bool) -> tuple:
    return out if has_aux else (out,)


def _is_key(leaf: Any) -> bool:
    return is_key(leaf) and leaf.shape == ()


def _arrays(rest: Tree) -> Iterable[Any]:
    return [leaf for leaf in jax.tree.leaves(rest) if not _is_key(leaf)]


def _batch_size(rest: Tree) -> int:
    """The first axis that all arrays of the other arguments share."""
    shapes = [jnp.shape(leaf) for leaf in _arrays(rest)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        raise errors.ShapeError(
            "arrays with the batch as their first axis",
            errors.show(shapes) if shapes else "none",
            "pass the batch to fn as an argument, and close over all else",
        )
    return sizes.pop()[0]


def _cut(leaf: Any, k: int) -> Any:
    """[B, ...] -> [k, B / k, ...]; a key into k."""
    if _is_key(leaf):
        return jax.random.split(leaf, k)
    leaf = as_array(leaf)
    return leaf.reshape(k, leaf.shape[0] // k, *leaf.shape[1:])


def _joined(aux: Tree, w: jax.Array | None) -> Tree:
    """The aux of all parts as one: sums added, other floats averaged, the last of the rest."""

    def join(node):
        sums = is_sum(node)
        return jax.tree.map(partial(jnp.sum, axis=0) if sums else partial(_mean, w), node)

    return jax.tree.map(join, aux, is_leaf=is_sum)


def _mean(w: jax.Array | None, stacked: jax.Array) -> jax.Array:
    """The weighted mean over the parts; for what is not floating, the last part."""
    if not jnp.issubdtype(stacked.dtype, jnp.floating):
        return stacked[-1]
    x = stacked.astype(widest(stacked.dtype, jnp.float32))
    if w is None:
        return jnp.mean(x, 0).astype(stacked.dtype)
    w = jnp.where(jnp.sum(w) == 0, 1, w).astype(x.dtype)  # if no part counts, all do
    w = w.reshape(-1, *(1,) * (x.ndim - 1))
    return (jnp.sum(w * jnp.where(w == 0, 0, x), 0) / jnp.sum(w)).astype(stacked.dtype)


def _add(w: jax.Array | None, total: jax.Array, g: jax.Array) -> jax.Array:
    if w is None:
        return total + g.astype(total.dtype)
    w = w.astype(total.dtype)
    return total + w * jnp.where(w == 0, 0, g.astype(total.dtype))


def _over(total: jax.Array, whole: int | jax.Array) -> jax.Array:
    return total / (whole if isinstance(whole, int) else whole.astype(total.dtype))


_NOISE = 0x6E6F6973  # separates the noise from fn's draws


def _noise_key(key: Key | None, noise_multiplier: Scalar, rest: Tree) -> Key | None:
    """The key of the noise; None for no noise."""
    if isinstance(noise_multiplier, (int, float)) and noise_multiplier == 0:
        return None
    if key is None:
        keys = [leaf for leaf in jax.tree.leaves(rest) if _is_key(leaf)]
        if len(keys) != 1:
            raise errors.RandomKeyError(
                "a key for the noise", "none", "pass key=, a new one at each step"
            )
        return jax.random.fold_in(keys[0], _NOISE)
    return key
