"""The network that a checkpoint's params belong to, described beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fnn.checkpoint.folder import newest_of
from fnn.checkpoint.leaves import Path, separate
from fnn.checkpoint.restore import opened, restore
from fnn.core import errors
from fnn.core.errors import CheckpointError
from fnn.core.layer import Layer
from fnn.core.shapes import natives
from fnn.core.types import Tree
from fnn.description import build, describe


class Loaded(NamedTuple):
    """A network, its params and its state."""

    net: Layer
    params: Tree
    state: Tree


def network_of(net: Layer) -> dict[str, str]:
    """What a manifest says of a network: its description, or why it has none.

    A lambda is no reason to lose a run, so what cannot be described is reported by `load`.
    """
    try:
        return {"description": describe(net)}
    except Exception as error:  # of options of any kind
        return {"refused": str(error) or type(error).__name__}


@errors.named
def load(path: str | os.PathLike, *, allow: Sequence[str] = ()) -> Loaded:
    """A network and its params from a checkpoint, without the script that trained it.

    - `path`: a checkpoint, or the directory of an `fnn.checkpoint.Keeper`, whose newest is taken.
    - `allow`: modules of yours that the network's functions may be imported from, as in
      `fnn.build`. Nothing else in a checkpoint is run.

    Returns `Loaded(net, params, state)`. Raises CheckpointError for a checkpoint that is damaged or
    was saved without its network, DescriptionError for a network that names what is not allowed.

    >>> import tempfile, jax, fnn
    >>> net = fnn.serial(fnn.dense(8), jax.nn.relu, fnn.dense(3))
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> path = tempfile.mkdtemp() + "/trained"
    >>> saving = fnn.checkpoint.save(path, params, net=net)
    >>> net, params, state = fnn.load(path)
    >>> net(params, jax.numpy.ones((2, 4))).shape
    (2, 3)
    """
    path = newest_of(path)
    saved = opened(path)
    said = saved.manifest.get("network")
    if not isinstance(said, dict) or not isinstance(said.get("description"), str):
        why = said.get("refused") if isinstance(said, dict) else None
        got = "none" if why is None else f"one that could not be described: {why}"
        mend = "save it with net=net, or build the network and restore its params"
        raise CheckpointError(f"a network in the checkpoint {path}", got, mend)
    net = build(said["description"], allow=allow)
    at = _place_of_params(saved.entries)
    params = restore(path, at=f"{at}params") if at is not None else restore(path)
    of_state = () if at is None else separate(f"{at}state")
    some = at is not None and any(names[: len(of_state)] == of_state for names in saved.entries)
    state = restore(path, at=f"{at}state") if some else {}  # of none no leaf is saved
    return Loaded(net, natives(params, "params"), natives(state, "state"))


def _place_of_params(entries: Iterable[Path]) -> str | None:
    """Where "params" and "state" stand; None if the whole tree is params."""
    tops = {names[:2] for names in entries} | {names[:1] for names in entries}
    if ("train_state",) in tops:
        return "train_state/"
    return "" if ("params",) in tops else None
