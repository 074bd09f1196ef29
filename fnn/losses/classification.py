"""Losses of classifiers."""

from __future__ import annotations

import math

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.dtypes import is_floating, wide
from fnn.core.types import Scalar
from fnn.losses.inputs import (
    binary,
    choose,
    class_labels,
    numbered,
    same_dtype,
    same_shape,
)
from fnn.losses.masking import check_mask, clear, masked
from fnn.losses.numerics import kl, normalize, times


@errors.named
def softmax_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: Scalar = 0.0,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of softmax(logits) against labels, -sum over c of p_c log softmax(logits)_c.

    [..., C] logits and [...] integer labels, or [..., C] probabilities p of floating dtype, give
    [...] losses in nats, computed and returned in float32 or wider. Logits of minus infinity are
    impossible classes: loss and gradient stay finite as long as their p is zero. An integer label
    outside 0 ... C - 1 gives NaN, since under `jit` it cannot raise.

    - `label_smoothing`: e in [0, 1]; replaces p by (1 - e) p + e / C (Szegedy et al., 2016, section
      7). Off by default. It gives weight to impossible classes, and so an infinite loss.
    - `mask`: [...], False where the loss and its gradient are 0, whatever the inputs hold.

    Raises ShapeError if the shapes do not fit, DtypeError for integer logits, OptionError for
    smoothing outside [0, 1].

    >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
    >>> print(softmax_cross_entropy(logits, jnp.array([0, 1])).round(3))
    [0.127 0.693]
    """
    checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    logits, labels, mask = _labelled("logits", logits, labels, mask)
    return masked(cross_entropy(logits, labels, label_smoothing), mask)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: Scalar = 0.0) -> jax.Array:
    """`softmax_cross_entropy` of inputs that have been checked."""
    x, log_total = normalize(logits)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        losses = log_total - choose(x, labels)
    else:
        losses = -jnp.sum(times(labels, x - log_total[..., None]), axis=-1)
    if isinstance(smoothing, jax.core.Tracer) or np.asarray(smoothing) != 0:
        e = jnp.asarray(smoothing, x.dtype)
        losses = times(1 - e, losses) + times(e, log_total - jnp.mean(x, axis=-1))
    return losses


@errors.named
def sigmoid_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy of sigmoid(logits) against labels of two classes: [...] -> [...].

        -y log sigmoid(x) - (1 - y) log sigmoid(-x)

    Elementwise: independent classes on a last axis are not summed.

    - `logits`: floating, of the label being 1.
    - `labels`: 0 or 1 as bools or integers, or floating probabilities of 1, of the logits' shape.
      Another integer gives NaN.
    - `mask`: False where the loss and its gradient are 0, whatever the inputs hold there.

    In nats, computed and returned in float32 or wider; infinite logits on the label's side are
    certain, with loss and gradient 0.
    Raises ShapeError if the shapes differ, DtypeError for integer logits.

    >>> print(sigmoid_cross_entropy(jnp.array([2.0, -jnp.inf]), jnp.array([1, 0])).round(3))
    [0.127 0.   ]
    """
    x, y, mask = _binary("logits", logits, labels, mask)
    return masked(times(y, jax.nn.softplus(-x)) + times(1 - y, jax.nn.softplus(x)), mask)


@errors.named
def focal(
    logits: jax.Array,
    labels: jax.Array,
    gamma: Scalar = 2.0,
    alpha: Scalar = 0.25,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of two classes that down-weights easy examples: [...] -> [...].

        -y a (1 - p)^gamma log p - (1 - y) (1 - a) p^gamma log(1 - p),  p = sigmoid(logits)

    Elementwise: independent classes on a last axis are not summed.

    - `logits`, `labels`, `mask`: as in `sigmoid_cross_entropy`.
    - `gamma`: how strongly, at least 0. `alpha`: the weight a of label 1, in [0, 1]. 2 and 0.25
      are the paper's best; gamma = 0, alpha = 0.5 is half the cross-entropy.

    In nats, computed and returned in float32 or wider, with finite gradients wherever the loss is
    finite.
    Raises ShapeError if the shapes differ, DtypeError for integer logits, OptionError for gamma or
    alpha out of range. Lin et al. (2017), equation 5.

    >>> print(focal(jnp.array([0.0, 4.0]), jnp.array([1, 1])).round(4))
    [0.0433 0.    ]
    """
    checks.number("gamma", gamma, 0.0, math.inf, open_high=True)
    checks.number("alpha", alpha, 0.0, 1.0)
    x, y, mask = _binary("logits", logits, labels, mask)
    gamma, alpha = jnp.asarray(gamma, x.dtype), jnp.asarray(alpha, x.dtype)

    def term(weight: jax.Array, x: jax.Array) -> jax.Array:  # of label 1: p = sigmoid(x)
        x = jnp.where((weight == 0) & jnp.isinf(x), 0, x)
        easy = jnp.exp(-times(gamma, jax.nn.softplus(x)))  # (1 - p)^gamma
        return weight * easy * jax.nn.softplus(-x)

    return masked(times(alpha, term(y, x)) + times(1 - alpha, term(1 - y, -x)), mask)


@errors.named
def log_loss(
    probabilities: jax.Array,
    labels: jax.Array,
    *,
    eps: Scalar = 1e-7,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of probabilities q against labels, -sum over c of p_c log q_c.

    [..., C] -> [...]. For networks that end in probabilities; from logits,
    `softmax_cross_entropy` is exact.

    - `probabilities`: floating; they are not normalized.
    - `labels`: [...] integers, or [..., C] floating probabilities p. An integer outside
      0 ... C - 1 gives NaN.
    - `eps`: above 0. Below it, log is continued by its tangent, log(eps) + (q - eps) / eps, so at
      q = 0 the loss is 1 - log(eps), and its gradient -1 / eps is finite and does not vanish. 1e-7
      is the resolution of float32 at 1.
    - `mask`: [...], False where the loss and its gradient are 0, whatever the inputs hold.

    In nats, computed and returned in float32 or wider.
    Raises ShapeError if the shapes do not fit, DtypeError for integer probabilities, OptionError
    for eps that is not above 0.

    >>> print(log_loss(jnp.array([[0.9, 0.1], [1.0, 0.0]]), jnp.array([0, 1])).round())
    [ 0. 17.]
    """
    checks.positive("eps", eps)
    q, labels, mask = _labelled("probabilities", probabilities, labels, mask)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return masked(-_log(choose(q, labels), eps), mask)
    return masked(-jnp.sum(labels * _log(q, eps), axis=-1), mask)


@errors.named
def binary_log_loss(
    probabilities: jax.Array,
    labels: jax.Array,
    *,
    eps: Scalar = 1e-7,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of probabilities q of label 1, of two classes: [...] -> [...].

        -y log q - (1 - y) log(1 - q)

    Elementwise; from logits, `sigmoid_cross_entropy` is exact.

    - `probabilities`: floating, in [0, 1].
    - `labels`: 0 or 1 as bools or integers, or floating probabilities of 1, of the same shape.
      Another integer gives NaN.
    - `eps`: where log is continued by its tangent, as in `log_loss`.
    - `mask`: False where the loss and its gradient are 0, whatever the inputs hold there.

    In nats, computed and returned in float32 or wider.
    Raises ShapeError if the shapes differ, DtypeError for integer probabilities, OptionError for
    eps that is not above 0.

    >>> print(binary_log_loss(jnp.array([0.9, 0.0]), jnp.array([1, 0])).round(3))
    [0.105 0.   ]
    """
    checks.positive("eps", eps)
    q, y, mask = _binary("probabilities", probabilities, labels, mask)
    return masked(-y * _log(q, eps) - (1 - y) * _log_not(q, eps), mask)


@errors.named
def hinge(scores: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """Distance of the score from its label's side, max(0, 1 - t s), t = 2 y - 1: [...] -> [...].

    - `scores`: floating, positive for label 1.
    - `labels`: 0 or 1, bools or integers, of the scores' shape. Another integer, such as
      the -1 of labels in {-1, 1}, gives NaN.
    - `mask`: False where the loss and its gradient are 0, whatever the inputs hold there.

    Computed and returned in float32 or wider; the gradient at the kink is 0.
    Raises ShapeError if the shapes differ, DtypeError for integer scores or floating labels.
    Cortes & Vapnik (1995).

    >>> print(hinge(jnp.array([0.5, 3.0, 0.5]), jnp.array([1, 1, 0])))
    [0.5 0.  1.5]
    """
    s, y, mask = _binary("scores", scores, labels, mask, soft=False)
    return masked(jax.nn.relu(1 - (2 * y - 1) * s), mask)


@errors.named
def multiclass_hinge(
    scores: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """How far the label's score is from leading by 1: [..., C] and [...] -> [...].

        max(0, 1 + max over c != y of s_c - s_y)

    - `scores`: floating. Minus infinity is an impossible class.
    - `labels`: integers; one outside 0 ... C - 1 gives NaN.
    - `mask`: [...], False where the loss and its gradient are 0, whatever the inputs hold.

    Computed and returned in float32 or wider; the gradient at the kink is 0, and tied rivals
    share theirs.
    Raises ShapeError if the shapes do not fit, DtypeError for integer scores or floating labels.
    Crammer & Singer (2001).

    >>> print(multiclass_hinge(jnp.array([[2.0, 0.0, 1.5]]), jnp.array([0])))
    [0.5]
    """
    s, labels, mask = _labelled("scores", scores, labels, mask, soft=False)
    own = numbered(s.shape[-1], labels) == labels[..., None]
    rival = jnp.max(jnp.where(own, -jnp.inf, s), axis=-1, initial=-jnp.inf)
    return masked(jax.nn.relu(1 + rival - choose(s, labels)), mask)


@errors.named
def distillation(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    temperature: Scalar,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Divergence of a student from its teacher at a temperature T: [..., C] -> [...].

        T^2 KL(softmax(teacher / T) || softmax(student / T))

    The factor keeps the gradient's size as T varies, and the divergence's gradient for the student
    is the cross-entropy's. The teacher has a gradient too: pass its logits
    through `jax.lax.stop_gradient` if its parameters are differentiated.

    - `student_logits`, `teacher_logits`: floating, of one shape.
    - `temperature`: above 0; 1 to 20 in the paper, which chooses by task, so there is no default.
    - `mask`: [...], False where the loss and its gradient are 0, whatever the inputs hold.

    In nats, never negative, computed and returned in float32 or wider.
    Raises ShapeError if the shapes differ, DtypeError for integers, OptionError for a temperature
    that is not above 0. Hinton, Vinyals & Dean (2015), section 2.

    >>> student, teacher = jnp.array([0.0, 0.0]), jnp.array([2.0, 0.0])
    >>> print(distillation(student, teacher, 1.0).round(3), distillation(teacher, teacher, 1.0))
    0.328 0.0
    """
    checks.positive("temperature", temperature)
    student, teacher = same_shape(1, student_logits=student_logits, teacher_logits=teacher_logits)
    mask = check_mask(mask, student.shape[:-1])
    t = jnp.asarray(temperature, student.dtype)
    return masked(t * t * kl(clear(teacher, mask), clear(student, mask), t), mask)


def _log(q: jax.Array, eps: Scalar) -> jax.Array:
    """log, continued below eps by its tangent there."""
    eps = jnp.asarray(eps, q.dtype)
    low = q < eps
    return jnp.log(jnp.where(low, eps, q)) + _below(q, eps, low)


def _log_not(q: jax.Array, eps: Scalar) -> jax.Array:
    """log(1 - q), like `_log` of 1 - q, which would round away a small q."""
    eps = jnp.asarray(eps, q.dtype)
    low = 1 - q < eps
    high = jnp.log1p(-jnp.where(low, 0, q))
    return jnp.where(low, jnp.log(eps), high) + _below(1 - q, eps, low)


def _below(q: jax.Array, eps: jax.Array, low: jax.Array) -> jax.Array:
    """(q - eps) / eps where low, else 0, with derivatives that do not overflow there."""
    return jnp.where(low, q, 1) / jnp.where(low, eps, 1) - 1


def _labelled(
    scores: str, x: jax.Array, labels: jax.Array, mask: jax.Array | None, soft: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(scores [..., C], labels, mask), checked, widened, and zero where masked."""
    x, labels = class_labels(scores, x, labels, soft)
    mask = check_mask(mask, x.shape[:-1])
    if is_floating(labels):
        x, labels = same_dtype(x, labels)
    return clear(x.astype(wide(x.dtype)), mask), clear(labels, mask), mask


def _binary(
    scores: str, x: jax.Array, labels: jax.Array, mask: jax.Array | None, soft: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(scores [...], labels in [0, 1], mask), checked, widened, and zero where masked."""
    x, labels = binary(scores, x, labels, soft)
    mask = check_mask(mask, x.shape)
    return clear(x, mask), clear(labels, mask), mask
