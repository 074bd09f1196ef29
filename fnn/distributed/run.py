"""One process of a run: it finds the others, runs the user's function, and fails with them."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax

from fnn.core import checks, errors
from fnn.distributed.watch import Watch, leave, say

T = TypeVar("T")

# What `run` is told by the environment, where no argument says otherwise.
COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
COUNTS = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"  # of processes, in clusters that JAX knows


class Place(NamedTuple):
    """Where a process stands; None is for JAX to find out."""

    coordinator: str | None
    processes: int | None
    process: int | None


@errors.named
def run(
    main: Callable[[], T],
    *,
    heartbeat: int = 10,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    start: int = 300,
) -> T:
    """Run `main()` in this process of several, which all end as soon as one of them fails.

    Every process calls `run` with the same `main`, before any computation of JAX's. The processes
    find each other by `jax.distributed.initialize`; then `jax.devices()` are those of all. If no
    arguments and no environment say that there are others, it is just `main()`.

    - `main`: without arguments; `functools.partial` gives it some.
    - `heartbeat`: seconds. When a process dies, or `main` raises in it, the others end at once and
      say which. When one is stopped or loses its network, they end within about so many seconds.
    - `coordinator`: "host:port" of the first process, the same for all. By default the environment
      variable JAX_COORDINATOR_ADDRESS; `processes`, how many there are, is JAX_NUM_PROCESSES, and
      `process`, this one's number from 0, JAX_PROCESS_ID. What none of these says JAX finds out
      from SLURM, Open MPI, a TPU pod's metadata or Kubernetes (`pip install jax[k8s]`).
    - `start`: seconds to wait for processes that have not come yet.

    A process that fails ends with a status other than 0 and runs no more Python: no `finally`, no
    `atexit`. Its files are as they are after a kill, which checkpoints and logs of fnn survive.

    Returns what `main` returns. Raises OptionError if only some of the three are known, and
    InputError if JAX has started already. An exception of `main` is raised as it is where there is
    one process; of several, it is printed, and they end with status 1.

    >>> import fnn
    >>> fnn.distributed.run(lambda: jax.process_count())
    1
    """
    checks.function("main", main, "nothing")
    heartbeat = checks.count("heartbeat", heartbeat)
    place = _place(coordinator, processes, process)
    if not _joined(place, heartbeat, checks.count("start", start)):
        return main()
    watch = Watch(place.coordinator)
    try:
        result = main()
    except SystemExit as error:
        if error.code:
            watch.failed(f"SystemExit: {error.code}")
            say(error.code if isinstance(error.code, str) else f"exit status {error.code}")
            leave(error.code if isinstance(error.code, int) else 1)
        result = None
    except BaseException as error:
        say(traceback.format_exc())
        watch.failed(f"{type(error).__name__}: {error}")
        leave(1)
    watch.done()  # no process is gone while others still compute with it
    jax.distributed.shutdown()
    return result  # pyright: ignore[reportReturnType]


def _place(coordinator: str | None, processes: int | None, process: int | None) -> Place:
    """What arguments say, and else the environment."""
    found = Place(
        coordinator or os.environ.get(COORDINATOR),
        _number(PROCESSES) if processes is None else checks.count("processes", processes),
        _number(PROCESS) if process is None else checks.count("process", process, 0),
    )
    number, count = found.process, found.processes
    if number is not None and count is not None and number >= count:
        wanted = f"process below the number of processes, {count}"
        raise errors.OptionError(wanted, f"{number}", "count processes from 0")
    return found


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal():
        mend = "let what starts the processes set it"
        raise errors.OptionError(f"a number in the environment variable {variable}", text, mend)
    return int(text)


def _in_cluster() -> bool:
    """Whether a cluster says that there are others, which JAX does not ask once it has started."""
    counts = [os.environ.get(name, "1") for name in COUNTS]
    return any(n != "1" for n in counts) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def _joined(place: Place, heartbeat: int, start: int) -> bool:
    """Whether there are several processes, which have found each other then."""
    if None not in place and place.processes == 1:
        return False
    # JAX would catch SIGTERM, and not end; what is to be saved is `stop_on_signal`'s.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *place, initialization_timeout=start, heartbeat_timeout_seconds=heartbeat
        )
    except ValueError as error:
        if all(value is None for value in place):
            return False  # JAX knows of no other process
        missing = [
            name for name, value in zip((COORDINATOR, PROCESSES, PROCESS), place, strict=True)
            if value is None
        ]  # fmt: skip
        if not missing:
            raise
        raise errors.OptionError(
            "coordinator, processes and process, or the variables of the environment",
            f"none for {errors.names(missing)}",
            "set them as examples/cluster does, or start the script by "
            "python -m fnn.distributed --processes 4",
        ) from error
    except RuntimeError as error:
        if "before" not in str(error) and "once" not in str(error):
            raise
        if all(value is None for value in place) and not _in_cluster():
            return False  # a notebook, say, that has used JAX already
        mend = "call fnn.distributed.run before anything computes, at the end of the script"
        raise errors.InputError("JAX to start in run", "it started already", mend) from error
    return jax.process_count() > 1
