"""Batch statistics for params that were not trained with them: averaged or transferred ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors, trees
from fnn.core.declarations import arrays_of
from fnn.core.layer import Layer
from fnn.core.types import Key, Tree


@errors.named
def refresh_statistics(
    net: Layer,
    params: Tree,
    state: Tree,
    batches: Iterable[Tree],
    *,
    key: Key | None = None,
    inputs: Callable[[Tree], Any] | None = None,
) -> Tree:
    """The network's state with new batch statistics: the mean over batches of each batch's own.

    The statistics that training leaves belong to the params it passed through; averaged params
    (`fnn.optim.average_params`, a mean of checkpoints) need their own. The network runs in training
    mode over the batches, and every leaf declared as a "statistic" becomes the mean of the batches'
    statistics, weighted by their numbers of examples, whatever the layer's momentum.

    - `params`, `state`: of the network; other leaves of the state do not change.
    - `batches`: as in training; a few dozen are enough.
    - `key`: for networks with dropout; batch i draws from it folded with i.
    - `inputs(batch)`: the part of a batch that the network takes. None takes "image" of a dict, the
      first of a pair, or else the whole batch.

    Raises InputError if there is no batch. Like `torch.optim.swa_utils.update_bn`; Izmailov et al.
    (2018), section 3.2.

    >>> import fnn
    >>> net = fnn.batch_norm()
    >>> params, state = net.init(jax.random.key(0), (2, 1))
    >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [5.0]])]
    >>> fresh = refresh_statistics(net, params, state, batches)
    >>> [round(float(fresh[name][0]), 3) for name in ("mean", "var")]
    [3.5, 0.5]
    """
    take = _inputs if inputs is None else inputs
    key = None if key is None else checks.typed_key(key)
    total: Tree = None
    examples, start, kept = 0, None, None

    @jax.jit
    def after(params, state, x, key):
        return net.apply(params, state, x, key=key, train=True)[1]

    for i, batch in enumerate(batches):
        x = take(batch)
        number = checks.examples("a batch", x)
        own_key = None if key is None else jax.random.fold_in(key, i)
        if total is None:  # a statistic s becomes k s + (1 - k) b, with b the batch's own
            chosen = _statistics(net, state, x)
            start, ones = (_filled(chosen, state, value) for value in (0.0, 1.0))
            at_zero, at_one = (after(params, s, x, own_key) for s in (start, ones))
            kept = _map(chosen, state, jnp.subtract, at_one, at_zero)
            new, total = at_zero, _filled(chosen, state, 0.0)
        else:
            new = after(params, start, x, own_key)
        total = _map(chosen, total, lambda t, n, m=number: t + m * n, total, new)
        examples += number
    if total is None:
        raise errors.InputError("one batch or more", "none", "an iterator can be used only once")

    def mean(old, total, kept):
        new = total / jnp.where(kept < 1, (1 - kept) * examples, 1)
        return jnp.where(kept < 1, new, old)  # what does not depend on the batch stays

    return _map(chosen, state, mean, state, total, kept)


def _statistics(net: Layer, state: Tree, x: Any) -> Tree:
    """Which leaves of the state are declared as statistics."""
    _, declared = net.specs(x)
    trees.alike("state", state, "declared", arrays_of(declared), "pass the state of this network")
    return jax.tree.map(lambda spec: spec.kind == "statistic", declared)


def _map(chosen: Tree, state: Tree, fn: Callable, *trees: Tree) -> Tree:
    """fn of the chosen leaves; the others are the state's."""
    return jax.tree.map(lambda keep, s, *leaves: fn(*leaves) if keep else s, chosen, state, *trees)


def _filled(chosen: Tree, state: Tree, value: float) -> Tree:
    return _map(chosen, state, lambda leaf: jnp.full_like(leaf, value), state)


def _inputs(batch: Tree) -> Any:
    if isinstance(batch, Mapping) and "image" in batch:
        return batch["image"]
    return batch[0] if isinstance(batch, tuple) and len(batch) == 2 else batch
