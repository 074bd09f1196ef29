"""The usual loss function of a step: a network on the inputs and labels of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fnn.core import checks, errors
from fnn.core.layer import Layer
from fnn.core.names import folded
from fnn.core.notes import notes as noted
from fnn.core.shapes import natives
from fnn.core.types import Key, Scalar, Tree
from fnn.data.augment.contract import Augmentation, check_function
from fnn.data.augment.mixtures import Mix
from fnn.losses.means import Measured, mean
from fnn.metrics.metric import check_metrics, updated
from fnn.train.weights import FromBatch, counting, losses_of


@errors.named
def supervised(
    net: Layer,
    loss: Callable[..., jax.Array],
    metrics: Mapping[str, Callable] | None = None,
    *,
    names: tuple[str, str] = ("image", "label"),
    mask: FromBatch = None,
    weights: FromBatch = None,
    lengths: FromBatch = None,
    class_weights: ArrayLike | None = None,
    notes: Mapping[str, Scalar] | None = None,
    augment: Augmentation | None = None,
    mix: Mix | None = None,
) -> Callable:
    """The usual loss function for `step`: the mean over the batch of `loss(outputs, labels)`.

        sum of w_i loss_i / sum of w_i + sum of c_j note_j

    The outputs are the network's in training mode, `net.apply(..., key=key, train=True)`. Without a
    mask or weights the loss is a scalar, else an `fnn.losses.Mean`, whose value the step takes.

    - `loss(outputs, labels)`: per example, such as `fnn.losses.softmax_cross_entropy`; if it takes
      `mask=`, it gets the mask of the examples that count.
    - `metrics`: by name, each an `fnn.metrics.Metric`, such as `fnn.metrics.accuracy()`, or a
      function like `loss`, to be averaged; each is returned with a `value` for the step.
    - `names`: of x and labels in a batch that is a dict; a batch may also be the pair (x, labels).
    - `mask`, `weights`, `lengths`: which examples count, in the loss and in the metrics, and how
      much. Each is a name in the batch or a function of the batch, such as
      `lambda batch: batch["label"] >= 0`. Masks are bools and weights real numbers at least 0, of
      the losses' shape or its first axes; lengths, integers [B], give the number of valid times in
      labels [B, T, ...]. The network sees all of x.
    - `class_weights`: [C], a factor on the weight of each example, by its integer label.
    - `notes`: the factors c_j of the network's notes (see `fnn.notes`), by glob of their paths, as
      `{"*/balance": 0.01}`.
    - `augment`: `(key, x) -> x` of one example, such as `fnn.data.augment.flip()`, mapped over x, a
      tree of arrays [B, ...], with one key for each example.
    - `mix`: `(key, x, labels) -> (x, labels)` of the whole batch, after `augment`, such as
      `fnn.data.augment.mixup(0.2, num_classes=10)`. The loss gets the mixed labels, which
      `fnn.losses.softmax_cross_entropy` takes; metrics, masks and weights the labels as they came.
      What a mask leaves out is mixed as well.

    The keys of both are folded from their names: the network's own draws, as of dropout, are those
    that they are without. Raises OptionError for `mix` with `class_weights`, as mixed labels are of
    several classes.

    >>> import fnn
    >>> net = fnn.dense(3)
    >>> loss_fn = supervised(net, fnn.losses.softmax_cross_entropy, {"acc": fnn.metrics.accuracy()})
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> batch = {"image": jnp.ones((2, 4)), "label": jnp.array([0, 1])}
    >>> loss, (state, metrics) = loss_fn(params, state, batch, jax.random.key(1))
    >>> print(metrics["acc"].value)
    0.5
    """
    measures = check_metrics(metrics or {})
    counted = counting(mask, weights, lengths, class_weights)
    for name, fn, of in (("augment", augment, "(key, x)"), ("mix", mix, "(key, x, labels)")):
        if fn is not None:
            check_function(name, fn, of)
    if mix is not None and class_weights is not None:
        mend = "leave one out, or weight the examples: weights=lambda batch: ..."
        raise errors.OptionError("mix without class_weights", "both", mend)

    def loss_fn(params, state, batch, key):
        with errors.within("supervised"):
            x, labels = inputs_and_labels(batch, names)
            keep, w = counted(batch, labels)
        if augment is not None:
            x = _augmented(augment, folded(key, "augment"), x)
        targets = labels
        if mix is not None:
            x, targets = _mixed(mix, folded(key, "mix"), x, labels)
        outputs, state = net.apply(params, state, x, key=key, train=True)
        seen = jax.lax.stop_gradient(outputs)  # a metric need not be differentiable
        measured = {
            name: Measured(updated(metric, metric.init(), seen, labels, keep, w), metric.compute)
            for name, metric in measures.items()
        }
        losses = losses_of(loss, outputs, targets, keep)
        with errors.within("supervised"):
            value = jnp.mean(losses) if keep is None else mean(losses, keep, w)
            for pattern, factor in (notes or {}).items():
                value = value + factor * _noted(state, pattern)
        return value, (state, measured)

    vars(loss_fn)["network"] = net  # for checkpoints
    return loss_fn


def _augmented(augment: Augmentation, key: Key, x: Tree) -> Tree:
    """Each example by itself, with a key of its own."""
    with errors.within("supervised"):
        x = natives(x, "x")
        n = checks.examples("x to augment", x)
    return jax.vmap(augment)(jax.random.split(key, n), x)


def _mixed(mix: Mix, key: Key, x: Tree, labels: Any) -> tuple[Any, Any]:
    mixed = mix(key, x, labels)
    with errors.within("supervised"):
        if not (isinstance(mixed, tuple) and len(mixed) == 2):
            checks.not_a_pair("mix", "(x, labels)", mixed)
    return mixed


def _noted(state: Tree, pattern: str) -> jax.Array:
    """The sum of the notes whose paths match."""
    found = noted(state, pattern)
    if not found:
        known = errors.names(noted(state))
        raise errors.OptionError(f"notes among {known}", pattern, "see fnn.notes")
    return sum(found.values(), jnp.zeros(()))


def inputs_and_labels(batch: Tree, names: tuple[str, str]) -> tuple[Any, Any]:
    """The two halves of a supervised batch, a pair or a dict."""
    if isinstance(batch, Mapping) and all(name in batch for name in names):
        return batch[names[0]], batch[names[1]]
    if isinstance(batch, tuple) and len(batch) == 2:
        return batch
    raise errors.InputError(
        f"a batch that is a dict with {errors.names(names)}, or a pair (x, labels)",
        errors.show(batch),
        "pass the names of x and labels, as names=('x', 'y'), or write your own loss function",
    )
