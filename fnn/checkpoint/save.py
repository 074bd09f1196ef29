"""Saving a tree: a copy on the host, and a folder that is complete or absent."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn.checkpoint import stores
from fnn.checkpoint.files import (
    VERSION,
    Part,
    arrays_name,
    url_of,
    write_arrays,
    write_manifest,
)
from fnn.checkpoint.leaves import Entry, Path, entry_of, is_value, joined, leaves_of
from fnn.checkpoint.network import network_of
from fnn.checkpoint.stores import taken
from fnn.core import errors
from fnn.core.dtypes import is_key
from fnn.core.durable import sync_directory
from fnn.core.errors import CheckpointError
from fnn.core.layer import Layer
from fnn.core.types import Tree

PATIENCE = 600.0  # seconds for which a process waits for the files of the others


class Saving:
    """A checkpoint on its way to the disk.

    >>> import tempfile
    >>> saving = save(tempfile.mkdtemp() + "/one", {"w": jnp.ones(3)}, wait=False)
    >>> saving.wait()  # raises if it failed
    >>> saving.done()
    True
    """

    def __init__(self, write: Callable[[], None]):
        self._write, self._error = write, None  # the error, until it is raised
        self._thread = threading.Thread(target=self._run, name="fnn checkpoint")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:  # raised by wait
            self._error = error
            atexit.register(self.wait)

    def done(self) -> bool:
        """Whether the checkpoint is on the disk, or failed."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return once the checkpoint is on the disk to stay; raise what went wrong.

        A failure that nobody waits for is raised when Python ends.
        """
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            atexit.unregister(self.wait)
            raise error


@errors.named
def save(
    path: str | os.PathLike,
    tree: Tree,
    *,
    meta: Mapping[str, Any] | None = None,
    net: Layer | None = None,
    wait: bool = True,
) -> Saving:
    """Save a tree in the folder `path`, which appears once it is complete.

    A kill, a full disk or a power cut at any moment leaves the whole checkpoint or none.

    - `path`: a folder, or a URL of an object store, such as "gs://bucket/run/step-500": then orbax
      writes it (extra `orbax`), with its own sums.
    - `tree`: arrays of any dtype that JAX has, typed keys, NumPy arrays and scalars, Python
      numbers, strings and None, in any pytree. Sharded arrays are written slice by slice, each by
      the process that owns it; then all processes call `save`, and `path` is on a shared disk.
    - `meta`: what you want to know later, as JSON: `{"run": 3, "data": "mnist"}`.
    - `net`: the network whose params these are, so that `fnn.load` gives it back with them; the
      tree is a training state, a dict with "params" and "state", or the params.
    - `wait`: False returns as soon as the values are copied to the host, so that training goes on,
      and its arrays may be donated; a thread writes the copy. It is safe once `Saving.wait` of the
      result returns, which raises what went wrong; unasked, this is raised when Python ends. A
      URL is always waited for.

    The checkpoint also holds the versions of fnn, jax and jaxlib, and the git commit of the
    directory in which Python started, if there is one.

    Raises CheckpointError if `path` exists, InputError or DtypeError for a leaf that cannot be
    stored, OSError, such as for a full disk, and ImportError for a URL without orbax.

    >>> import tempfile, fnn
    >>> path = tempfile.mkdtemp() + "/first"
    >>> params, state = fnn.dense(3).init(jax.random.key(0), (1, 4))
    >>> saving = fnn.checkpoint.save(path, params, meta={"epoch": 2})
    >>> restored = fnn.checkpoint.restore(path, params)
    >>> bool((restored["kernel"] == params["kernel"]).all())
    True
    """
    network = None if net is None else network_of(net)
    return save_described(path, tree, {} if meta is None else meta, network, wait)


def save_described(
    path: str | os.PathLike, tree: Tree, meta: Mapping[str, Any], network: dict | None, wait: bool
) -> Saving:
    """`save` of a network that is described already."""
    try:
        meta = json.loads(json.dumps(dict(meta)))
    except (TypeError, ValueError) as error:
        got = f"{errors.show(meta)} ({error})"
        raise errors.InputError("meta that JSON can hold", got, "pass str or float") from error
    entries, arrays = described(tree)
    manifest = {"format": "fnn checkpoint", "version": VERSION, "made_by": made_by(), "meta": meta}
    if network is not None:
        manifest["network"] = network
    url = url_of(path)
    if url is not None:
        wait = True  # orbax does not end what Python's own end interrupts
        write = stores.start(url, entries, arrays, manifest)
    else:
        target = pathlib.Path(os.path.abspath(path))
        if target.exists():
            raise taken(target)
        parts = own_parts(arrays, copy=not wait)
        name = _agreed_name() if jax.process_count() > 1 else secrets.token_hex(4)
        beside = target.parent / f".{target.name}.{name}.tmp"
        write = functools.partial(_write_all, target, beside, entries, parts, manifest)
    saving = Saving(write)
    if wait:
        saving.wait()
    return saving


def described(tree: Tree) -> tuple[dict[Path, Entry], dict[Path, Any]]:
    """What a manifest says of each leaf, and those that are arrays; of random keys, their data."""
    entries, arrays = {}, {}
    for path, leaf in leaves_of(tree):
        if path in entries:
            raise errors.InputError(
                "one leaf for each path", f"two at {joined(path)}", "rename one of them"
            )
        entries[path] = entry = entry_of(path, leaf)
        if isinstance(leaf, Tracer):
            where = f"{errors.show(leaf)} at {joined(path)}, which jit has not computed"
            mend = "save outside of jit, grad, vmap and scan"
            raise errors.InputError("an array with values", where, mend)
        if is_key(leaf):
            entry["impl"] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, (np.ndarray, np.generic)):
            leaf = np.asarray(leaf, np.dtype(leaf.dtype).newbyteorder("="))
        if not is_value(leaf):
            arrays[path] = leaf
    return entries, arrays


def own_parts(arrays: Mapping[Path, Any], *, copy: bool) -> list[Part]:
    """The slices that this process writes, on the host; a copy, if arrays may change meanwhile."""
    slices = []
    for path, array in arrays.items():
        if isinstance(array, jax.Array):
            own = [s for s in array.addressable_shards if s.replica_id == 0]
            slices += [(path, [i.start or 0 for i in s.index], s.data) for s in own]
        elif jax.process_index() == 0:
            slices.append((path, [0] * np.ndim(array), np.asarray(array)))
    for _, _, data in slices:
        if isinstance(data, jax.Array):
            data.copy_to_host_async()
    to_host = functools.partial(np.array if copy else np.asarray, order="C")
    return [Part(path, start, to_host(data)) for path, start, data in slices]


def _write_all(
    target: pathlib.Path,
    beside: pathlib.Path,
    entries: Mapping[Path, Entry],
    parts: list[Part],
    manifest: dict,
) -> None:
    """Write this process's files; the first one adds the manifest and renames the folder."""
    me, count = jax.process_index(), jax.process_count()
    beside.mkdir(parents=True, exist_ok=count > 1)
    try:
        file, slices = write_arrays(beside / arrays_name(me), parts)
        paths = [part.path for part in parts]
        of_process = {"file": file, "slices": [[*pair] for pair in zip(paths, slices, strict=True)]}
        if count > 1:
            written = beside / f"process-{me}.json"
            unready = written.with_suffix(".tmp")
            unready.write_text(json.dumps(of_process))
            os.replace(unready, written)
        if me > 0:
            _until(target.exists, f"process 0 to complete {target}", beside)
            return
        leaves = {path: [list(path), entry, []] for path, entry in entries.items()}
        files = []
        for process in range(count):
            if count > 1:
                part = beside / f"process-{process}.json"
                _until(part.exists, f"process {process} to write its part of {target}", beside)
                of_process = json.loads(part.read_text())
                part.unlink()
            files.append(of_process["file"])
            for path, said in of_process["slices"]:
                leaves[tuple(path)][2].append({"file": process, **said})
        write_manifest(beside, {**manifest, "files": files, "leaves": list(leaves.values())})
        sync_directory(beside)
        if target.exists():  # made meanwhile; rename would take an empty folder's place
            raise taken(target)
        os.rename(beside, target)
        sync_directory(target.parent)
    except BaseException as error:
        if count > 1:  # tell those who wait; the keeper's next run removes the folder
            with contextlib.suppress(OSError):
                (beside / f"process-{me}.failed").write_text(f"process {me}: {error}")
        else:
            shutil.rmtree(beside, ignore_errors=True)
        raise


def _until(ready: Callable[[], bool], what: str, beside: pathlib.Path) -> None:
    """Wait for another process, unless one has failed."""
    end, got = time.monotonic() + PATIENCE, ""
    while not ready():
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile, since it is complete
            for failed in beside.glob("*.failed"):
                got = f"a failure of {failed.read_text()}"
        if time.monotonic() > end:
            got = f"nothing within {PATIENCE:.0f} s"
        if got:
            mend = "look at that process's log; is the path on a disk that all share?"
            raise CheckpointError(what, got, mend)
        time.sleep(0.01)


def _agreed_name() -> str:
    """A random name which process 0 tells the others by a sum over all devices."""
    devices = np.array(jax.devices())
    sharding = NamedSharding(Mesh(devices, "d"), PartitionSpec("d"))
    own = secrets.randbelow(2**31) if jax.process_index() == 0 else 0
    first = devices[0]

    def at(index: Any) -> np.ndarray:
        return np.full(1, own if devices[index[0].start or 0] == first else 0, np.int32)

    numbers = jax.make_array_from_callback(devices.shape, sharding, at)
    return f"{int(jax.jit(jnp.sum)(numbers)):08x}"


@functools.cache
def made_by() -> dict[str, str | None]:
    """The versions that a checkpoint names, and the git commit where Python started."""
    import fnn

    commit = None
    try:
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        commit = done.stdout.strip() if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        pass  # no git here
    return {
        "fnn": fnn.__version__,
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "python": sys.version.split()[0],
        "commit": commit,
    }
