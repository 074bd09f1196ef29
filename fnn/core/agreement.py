"""What all processes of a run must have in common, compared before it goes wrong in silence.

Every process runs the same program on its part of the data. XLA checks nothing of that: processes
with other params, batches or programs compute nonsense together, or wait for each other forever.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn.core import errors
from fnn.core.dtypes import is_key
from fnn.core.types import Tree

SHOWN = 5  # differences in a message
ROWS = 64  # of data, whose values are compared
SAME_SCRIPT = "start every process with the same script and the same options"


def gather(data: bytes) -> list[bytes]:
    """The bytes of every process, in the order of processes; all must call it.

    On a CPU nothing that moves data between processes may be under way: two programs that share
    connections would take each other's messages. Wait for their results first.
    """
    sizes = _gathered(np.array([len(data)], np.int32))[:, 0]
    padded = np.zeros(1 << max(8, int(sizes.max() - 1).bit_length()), np.uint8)  # few programs
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = _gathered(padded)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def _gathered(row: np.ndarray) -> np.ndarray:
    """The row of every process: [N] -> [processes, N]."""
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([firsts[i] for i in sorted(firsts)]), "process")
    by_process = NamedSharding(mesh, PartitionSpec("process"))
    rows = jax.make_array_from_process_local_data(by_process, row[None], (len(firsts), len(row)))
    whole = _placed(rows, NamedSharding(mesh, PartitionSpec()))
    return np.asarray(whole.addressable_data(0))


@partial(jax.jit, static_argnames="sharding")
def _placed(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, sharding)


@errors.named
def check_agreement(tree: Tree, name: str = "tree", *, mend: str = SAME_SCRIPT) -> None:
    """Raise in every process unless all pass the same tree; every process must call it.

    Compared are paths, shapes, dtypes and values: of an array that is cut over processes, each
    slice that several of them hold. With one process there is nothing to compare.

    - `tree`: arrays, numbers and strings, such as params, or a dict of options.
    - `name`: what it is, in the message.
    - `mend`: what the message says to do.

    Raises AgreementError that names the processes, the paths and what differs.

    >>> check_agreement({"learning_rate": 0.1, "kernel": np.ones((2, 3))}, "options")
    """
    if jax.process_count() > 1:
        compare(name, *facts_of(tree, name), mend)


def check_same_data(data: Tree, name: str = "data") -> None:
    """The same for arrays [N, ...] that every process has whole; a few rows stand for all.

    Of arrays that are cut over processes, the shapes are compared.
    """
    if jax.process_count() == 1:
        return
    n = np.shape(jax.tree.leaves(data)[0])[0]
    rows = np.unique(np.linspace(0, n - 1, ROWS).astype(int))

    def few(x):
        if is_spread(x):
            return None
        return np.asarray((np.asarray(x) if isinstance(x, jax.Array) else x)[rows])

    some = jax.tree.map(few, data)
    facts = shapes_of(data, name) | facts_of(some, f"{name}, some rows")[0]
    compare(name, facts, {}, "load the same data, in the same order, in every process")


def check_next(batch: Tree | None, after: Tree) -> None:
    """Refuse batches of which some process has other shapes, or none any more (None)."""
    if jax.process_count() > 1:
        jax.block_until_ready(after)
        facts = {} if batch is None else shapes_of(batch, "batch")
        mend = "let every process have as many batches, with as many rows in each"
        compare("next batch", facts | {"another batch": "no" if batch is None else "yes"}, {}, mend)


def in_any(flag: bool, after: Tree) -> bool:
    """Whether it is true in any process; all must call it, after these arrays."""
    if jax.process_count() == 1:
        return flag
    jax.block_until_ready(after)
    return any(gather(b"!" * bool(flag)))


class Together:
    """What the processes that take a step together compare: shapes of batches whenever they are
    new, which is in every process at the same step, and all else before the first step."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()
        self.begun = False

    def check_shapes(self, batch: Tree, after: Tree, name: str = "batch") -> None:
        """Before the processes' parts are joined, whose sizes XLA takes to be equal."""
        if jax.process_count() == 1 or _traced((batch, after)):
            return
        shapes = shapes_of(batch, name)
        signature = tuple(shapes.items())
        if signature not in self.seen:
            mend = "let every process pass as many rows, as with a stream: "
            jax.block_until_ready(after)
            compare(name, shapes, {}, mend + "fnn.data.stream(device=placed.batch_sharding)")
            self.seen.add(signature)

    def check_first(self, train_state: Tree, batch: Tree, lower: Callable[[], Any]) -> None:
        """That the training state, what devices share of a batch, and the program are the same."""
        if self.begun or jax.process_count() == 1 or _traced((train_state, batch)):
            return
        arrays = [x for x in jax.tree.leaves(train_state) if isinstance(x, jax.Array)]
        if all(x.is_fully_addressable for x in arrays):
            raise errors.InputError(
                f"a training state over the devices of all {jax.process_count()} processes",
                "one of this process alone, which would learn nothing from the others",
                "place it: placed = fnn.sharding.plan(fnn.sharding.mesh(data=-1), net, tx, x), and "
                "pass shardings=placed to fnn.train.init and fnn.train.step",
            )
        mend = "make it in every process from the same key, or restore the same checkpoint"
        check_agreement(train_state, "train_state", mend=mend)
        check_agreement(batch, "batch", mend="of a batch that devices share, pass the same rows")
        check_program(lower().as_text())
        self.begun = True


def is_spread(x: Any) -> bool:
    """Whether it is an array of which other processes have a part."""
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def _traced(tree: Tree) -> bool:
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


# --- what is compared


def shapes_of(tree: Tree, name: str) -> dict[str, str]:
    """Of each leaf its shape and dtype, or a number's value, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {errors.path_in(name, keys): errors.show(leaf) for keys, leaf in leaves}


def facts_of(tree: Tree, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Of each leaf its shape and dtype, and the sum of the values of each slice in this process."""
    facts, slices = shapes_of(tree, name), {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = errors.path_in(name, keys)
        if is_key(leaf):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array):
            for shard in {str(shard.index): shard for shard in leaf.addressable_shards}.values():
                index = ", ".join(f"{i.start or 0}:{i.stop or ''}" for i in shard.index)
                slices[f"{path} [{index}]"] = _sum(np.asarray(shard.data))
        elif hasattr(leaf, "dtype"):
            facts[path] += f", {_sum(np.asarray(leaf))}"
    return facts, slices


def _sum(values: np.ndarray) -> str:
    """A sum of all bytes, as a message shows it."""
    data = values.tobytes() if values.dtype != object else repr(values.tolist()).encode()
    return f"values with sum {zlib.crc32(data):08x}"


# --- comparing


def compare(
    name: str, facts: Mapping[str, str], slices: Mapping[str, str], mend: str = SAME_SCRIPT
) -> None:
    """Refuse facts that differ between processes, and slices that differ where several have one."""
    own = zlib.compress(json.dumps([name, dict(facts), dict(slices)]).encode())
    said = [json.loads(zlib.decompress(text)) for text in gather(own)]
    names = {"what is compared": [of[0] for of in said]}
    everywhere = {path: [of[1].get(path) for of in said] for of in said for path in of[1]}
    somewhere = {path: [of[2].get(path) for of in said] for of in said for path in of[2]}
    differences = [_shown(path, of) for path, of in names.items() if len(set(of)) > 1]
    if not differences:
        differences = [_shown(path, of) for path, of in everywhere.items() if len(set(of)) > 1]
        differences += [
            _shown(path, of) for path, of in somewhere.items() if len(set(of) - {None}) > 1
        ]
    if differences:
        more = len(differences) - SHOWN
        shown = differences[:SHOWN] + ([f"and {more} more"] if more > 0 else [])
        wanted = f"the same {name} in all {len(said)} processes"
        raise errors.AgreementError(wanted, "; ".join(shown), mend)


def _shown(path: str, values: list[str | None]) -> str:
    """`path: a in process 0, b in processes 1, 2`."""
    groups: dict[str | None, list[str]] = {}
    for process, value in enumerate(values):
        groups.setdefault(value, []).append(str(process))
    parts = [
        f"{'none' if value is None else value} in process{'es' * (len(of) > 1)} {', '.join(of)}"
        for value, of in groups.items()
    ]
    return f"{path}: {', '.join(parts)}"


def check_program(text: str) -> None:
    """Refuse a program, as XLA's text, that is not the same in every process."""
    lines = [line.strip() for line in text.splitlines()]
    digest = f"{zlib.crc32(text.encode()):08x}"
    if len(set(gather(f"{len(lines)} {digest}".encode()))) == 1:
        return
    said = [
        zlib.decompress(of).decode().splitlines() for of in gather(zlib.compress(text.encode()))
    ]
    longest = max(map(len, said))
    padded = [[*(line.strip() for line in of), *[""] * (longest - len(of))] for of in said]
    first = next((i for i, line in enumerate(zip(*padded, strict=True)) if len(set(line)) > 1), 0)
    shown = _shown(f"line {first + 1}", [of[first][:200] for of in padded])
    wanted = f"the same program in all {len(said)} processes"
    raise errors.AgreementError(wanted, shown, SAME_SCRIPT)
