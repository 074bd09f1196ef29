"""Batch statistics of params that were not trained with them: of averages, of transferred ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.layer import Layer


@errors.named
def refresh_statistics(
    net: Layer,
    params: Any,
    state: Any,
    batches: Iterable[Any],
    *,
    key: Any = None,
    inputs: Callable[[Any], Any] | None = None,
) -> Any:
    """The network's state with batch statistics anew: the mean over batches of what each has.

    The statistics that training leaves behind belong to the params it passed; those of averaged
    params (`fnn.optim.average_params`, a mean of checkpoints) are others. Here the network runs in
    training mode over the batches, and every leaf declared as a "statistic" becomes the mean of the
    batches' own, each weighed by its number of examples, whatever the layer's momentum.

    - `params`, `state`: of the network; other leaves of the state stay as they are.
    - `batches`: some tens of batches as in training are enough.
    - `key`: for networks with dropout; batch i draws from it folded with i.
    - `inputs(batch)`: what of a batch the network takes. None takes "image" of a dict, the first of
      a pair, or else the batch.

    Raises InputError if there is no batch. As `torch.optim.swa_utils.update_bn`; Izmailov et al.
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
    total: Any = None
    examples, start, kept = 0, None, None

    @jax.jit
    def after(params, state, x, key):
        return net.apply(params, state, x, key=key, train=True)[1]

    for i, batch in enumerate(batches):
        x = take(batch)
        number = checks.examples("a batch", x)
        own_key = None if key is None else jax.random.fold_in(key, i)
        if total is None:  # a statistic s goes to k s + (1 - k) b, of the batch's own b
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
        raise errors.InputError("one batch or more", "none", "an iterator can be used once")

    def mean(old, total, kept):
        new = total / jnp.where(kept < 1, (1 - kept) * examples, 1)
        return jnp.where(kept < 1, new, old)  # what does not follow its batch stays

    return _map(chosen, state, mean, state, total, kept)


def _statistics(net: Layer, state: Any, x: Any) -> Any:
    """Which leaves of the state are declared as statistics."""
    _, declared = net.specs(x)
    kinds = jax.tree.map(lambda spec: spec.kind == "statistic", declared)
    if jax.tree.structure(kinds) != jax.tree.structure(state):
        raise errors.ParamsError(
            f"a state like {jax.tree.structure(kinds)}",
            f"{jax.tree.structure(state)}",
            "pass the state of this network",
        )
    return kinds


def _map(chosen: Any, state: Any, fn: Callable, *trees: Any) -> Any:
    """fn of the chosen leaves, and the state's others."""
    return jax.tree.map(lambda keep, s, *leaves: fn(*leaves) if keep else s, chosen, state, *trees)


def _filled(chosen: Any, state: Any, value: float) -> Any:
    return _map(chosen, state, lambda leaf: jnp.full_like(leaf, value), state)


def _inputs(batch: Any) -> Any:
    if isinstance(batch, Mapping) and "image" in batch:
        return batch["image"]
    return batch[0] if isinstance(batch, tuple) and len(batch) == 2 else batch
