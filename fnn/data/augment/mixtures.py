"""Examples of a batch mixed with one another, and their labels with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import is_floating, wide, widened
from fnn.core.origins import builder
from fnn.core.shapes import as_array
from fnn.core.types import Key, Scalar, Tree
from fnn.data.augment.boxes import box
from fnn.data.augment.contract import f32, whole
from fnn.data.augment.interpolation import weighed

Mix: TypeAlias = Callable[[Key, Any, jax.Array], tuple[Any, jax.Array]]


@builder
def mixup(alpha: Scalar, num_classes: int | None = None) -> Mix:
    """Mix each example of a batch with another one, and its label: `(key, x, labels)` likewise.

        x_i = s_i x_i + (1 - s_i) x_j,   labels likewise,   s_i ~ Beta(alpha, alpha)

    The partners j are a random permutation of the batch. [B, ...] -> [B, ...]. Zhang et al. (2018),
    section 2; s is drawn for each pair, as in its equation.

    - `alpha`: above 0; 0.1 to 0.4 in the paper on ImageNet, 1 on CIFAR. May be traced.
    - `num_classes`: the C of integer labels [B, ...], which become probabilities [B, ..., C] of
      float32. Floating labels, such as probabilities or targets of a regression, are mixed as they
      are.

    `fnn.losses.softmax_cross_entropy` takes such probabilities, and `log_loss` as well. An integer
    label outside 0 ... C - 1 gives NaN, which reaches its partner.
    The function raises DtypeError for x of integers, and for integer labels without num_classes.

    >>> from fnn.data import augment
    >>> x, labels = jnp.array([[0.0], [1.0]]), jnp.array([0, 1])
    >>> x, p = augment.mixup(1.0, num_classes=2)(jax.random.key(1), x, labels)
    >>> bool((x[:, 0] == p[:, 1]).all())
    True
    """
    checks.positive("alpha", alpha)
    classes = _classes(num_classes)

    def mixup(key: Key, x: Tree, labels: jax.Array) -> tuple[Tree, jax.Array]:
        with errors.within("mixup"):
            key, x, labels = _checked(key, x, labels, classes)
            checks.floating_leaves("x", x, "cast: x.astype(jnp.float32) / 255, or the like")
        order, shares = jax.random.split(key)
        n = len(labels)
        other = jax.random.permutation(order, n)
        s = _beta(shares, alpha, n)
        x, labels = (jax.tree.map(lambda a: _mixed(a, a[other], s), t) for t in (x, labels))
        return x, labels

    return mixup


@builder
def cutmix(alpha: Scalar, num_classes: int | None = None) -> Mix:
    """Paste a box of another image into each of a batch: `(key, x, labels) -> (x, labels)`.

        labels_i = s_i labels_i + (1 - s_i) labels_j,   s_i = 1 - the box's share of the pixels

    The box has the shape of the image, the share 1 - r of it for r ~ Beta(alpha, alpha), and its
    centre anywhere; it is cut off at the edges, whence s. The partners j are a random permutation
    of the batch. Images [B, ..., H, W, C] of any dtype. Yun et al. (2019), section 3.1, with a draw
    for each pair.

    - `alpha`, `num_classes`: as in `mixup`; the paper has alpha=1.

    The function raises DtypeError for integer labels without num_classes.

    >>> from fnn.data import augment
    >>> x = jnp.arange(2).reshape(2, 1, 1, 1) * jnp.ones((2, 8, 8, 1), int)
    >>> x, p = augment.cutmix(1.0, num_classes=2)(jax.random.key(0), x, jnp.arange(2))
    >>> bool((x.mean((1, 2, 3)) == p[:, 1]).all())
    True
    """
    checks.positive("alpha", alpha)
    classes = _classes(num_classes)

    def cutmix(key: Key, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        with errors.within("cutmix"):
            x = as_array(x, "x")
            checks.rank(x, 4, "[B, ..., H, W, C]")
            key, x, labels = _checked(key, x, labels, classes)
        n = len(labels)
        order, shares, places = jax.random.split(key, 3)
        other = jax.random.permutation(order, n)
        sides = jnp.sqrt(1 - _beta(shares, alpha, n))  # of the boxes, by those of the images
        u = jax.random.uniform(places, (n, 2), jnp.float32)
        inside = jax.vmap(_box)(x, sides, u)  # [B, ..., H, W, 1]
        own = 1 - jnp.mean(inside, axis=range(1, x.ndim), dtype=jnp.float32)
        return jnp.where(inside, x[other], x), _mixed(labels, labels[other], own)

    return cutmix


def _beta(key: Key, alpha: Scalar, n: int) -> jax.Array:
    """n draws of Beta(alpha, alpha), G / (G + H) for two of Gamma(alpha), by their logarithms."""
    logs = jax.random.loggamma(key, f32(alpha), (2, n), jnp.float32)
    return jax.nn.sigmoid(logs[0] - logs[1])


def _box(x: jax.Array, side: jax.Array, u: jax.Array) -> jax.Array:
    """Where one image is pasted over, by two draws."""
    size = [jnp.floor(n * side).astype(jnp.int32) for n in x.shape[-3:-1]]
    starts = [whole(v, 0, n - 1) - m // 2 for v, n, m in zip(u, x.shape[-3:-1], size, strict=True)]
    return box(x, starts, size)


def _mixed(a: jax.Array, b: jax.Array, share: jax.Array) -> jax.Array:
    """share a + (1 - share) b, with a share for each example; what has none does not count."""
    s = share.reshape(-1, *(1,) * (a.ndim - 1)).astype(wide(a.dtype))
    return (weighed(s, widened(a)) + weighed(1 - s, widened(b))).astype(a.dtype)


def _classes(num_classes: int | None) -> int | None:
    return None if num_classes is None else checks.count("num_classes", num_classes)


def _checked(key: Any, x: Any, labels: Any, classes: int | None) -> tuple[Key, Any, jax.Array]:
    """(key, x, floating labels) of one batch."""
    key, labels = checks.typed_key(key), as_array(labels, "labels")
    x = jax.tree.map(lambda a: as_array(a, "x"), x)
    checks.examples("x and labels", (x, labels))
    if is_floating(labels):
        return key, x, labels
    integers = jnp.issubdtype(labels.dtype, jnp.integer)
    if classes is None or not integers:
        mend = "pass num_classes=, so that they become probabilities"
        raise errors.DtypeError(
            "floating labels, or integers with num_classes",
            f"labels {errors.show(labels)}",
            mend if integers else "cast: labels.astype(jnp.float32)",
        )
    if jnp.iinfo(labels.dtype).bits < 32:  # which may not hold the number of classes
        labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < classes)
    p = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    return key, x, jnp.where(known[..., None], p, jnp.nan)
