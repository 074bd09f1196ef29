"""One update of params by the gradient of a loss: all of a step, and one move of a player."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.layer import Layer
from fnn.core.types import Key, Tree
from fnn.losses.means import Mean, Weighed, values
from fnn.optim.safety import unless_skipped
from fnn.optim.transform import Transform, apply_updates, check_transform, taking_extra


class Trained(NamedTuple):
    """What an update changes."""

    params: Tree
    state: Tree
    opt_state: Tree


class Seen(NamedTuple):
    """What an update saw: the loss, its gradient, and the metrics of the loss function."""

    loss: jax.Array
    grads: Tree
    metrics: dict[str, Any]

    def reported(self, asked: dict[str, jax.Array]) -> dict[str, Any]:
        """The metrics of a step, with those that it was asked for."""
        if asked.keys() & self.metrics.keys():
            raise errors.ParamsError(
                f"metrics without {errors.names(asked)}, which the step adds",
                errors.names(self.metrics),
                "give them other names",
            )
        return {"loss": self.loss, **asked, **values(self.metrics)}


Update = Callable[[Callable, Trained, Tree, Key], tuple[Trained, Seen]]


def update_of(tx: Transform, grad: Callable) -> Update:
    """`(loss_fn, before, batch, key) -> (after, seen)`, by an optimizer; see `fnn.train.step`."""
    check_transform(tx)
    checks.function("grad", grad, "a function, as jax.value_and_grad")
    tx_update = taking_extra(tx.update)

    def update(loss_fn, before, batch, key):
        def value_fn(params, batch, key):
            out = loss_fn(params, before.state, batch, key)
            _check_returned(out, before.state)
            loss, aux = out
            return (loss.value, Weighed(aux, loss.weight)) if isinstance(loss, Mean) else out

        grad_fn = grad(value_fn, has_aux=True)
        (loss, aux), grads = grad_fn(before.params, batch, key)
        state, metrics = aux.aux if isinstance(aux, Weighed) else aux
        grads = jax.tree.map(jnp.conj, grads)  # for complex params, the direction of ascent
        with jax.named_scope("optimizer"):
            updates, opt_state = tx_update(
                grads,
                before.opt_state,
                before.params,
                value=loss,
                grad=grads,
                value_fn=lambda params: value_fn(params, batch, key)[0],
            )
            params = apply_updates(before.params, updates)
        after = unless_skipped(before, (params, state, opt_state))
        return Trained(*after), Seen(loss, grads, metrics)

    return update


def check_loss(loss_fn: Any) -> None:
    if isinstance(loss_fn, Layer):
        raise errors.InputError(
            "a loss function (params, state, batch, key)",
            f"the layer {loss_fn.name}",
            "make one: fnn.train.supervised(net, loss)",
        )
    checks.function("loss_fn", loss_fn, "(params, state, batch, key)")


def _check_returned(out: Any, state: Tree) -> None:
    """Refuse what is not (scalar, (state of the same structure, metrics))."""
    pair = isinstance(out, tuple) and len(out) == 2
    if not (pair and isinstance(out[1], tuple) and len(out[1]) == 2):
        checks.not_a_pair("loss_fn", "(loss, (state, metrics))", out)
    loss, (new_state, metrics) = out
    if jnp.shape(loss.total if isinstance(loss, Mean) else loss) != ():
        raise errors.ShapeError("a scalar loss", errors.show(loss), "average it: jnp.mean(loss)")
    if jax.tree.structure(new_state) != jax.tree.structure(state):
        raise errors.ParamsError(
            f"loss_fn to return (loss, (state, metrics)) with state {errors.show(state)}",
            f"state {errors.show(new_state)}",
            "return the state of net.apply, before the metrics; of several networks, that of all",
        )
    checks.mapping("metrics", metrics)
    if "loss" in metrics:
        wanted = "metrics without a loss, which the step adds"
        raise errors.ParamsError(wanted, "a loss", "give it another name")
