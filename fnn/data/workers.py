"""Workers: threads or processes that do work ahead, in order, and end with whoever asked for it."""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

import jax

from fnn.core import errors

Work = Callable[[Any], Any]


def in_order(
    work: Work, items: Iterable[Any], threads: int, processes: int, ahead: int
) -> Generator[Any, None, None]:
    """The results of `work` on each item, in order, with up to `ahead` of them under way.

    Workers start with the first result, and have ended once the generator is closed or dropped.
    """
    items = iter(items)
    if not threads and not processes:
        yield from map(work, items)
        return
    config: Any = jax.config
    work = functools.partial(_in_mode, work, config.jax_enable_x64)
    pool, work = _processes(work, processes) if processes else (_threads(threads), work)
    end = functools.partial(_end, pool)
    atexit.register(end)  # a generator that is still open when Python ends is closed too late
    python_ends = sys.is_finalizing  # then modules have been taken apart, but this is kept
    try:
        under_way = collections.deque(pool.submit(work, item) for item in _some(items, ahead))
        while under_way:
            result = under_way.popleft().result()
            under_way.extend(pool.submit(work, item) for item in _some(items, 1))
            yield result
    except BrokenProcessPool as error:
        raise _died() from error
    finally:
        if not python_ends():
            atexit.unregister(end)
            end()


def _in_mode(work: Work, x64: bool, item: Any) -> Any:
    """Work in the caller's mode of 64 bits, which neither threads nor processes inherit."""
    with jax.enable_x64(x64):
        return work(item)


def _end(pool: Executor) -> None:
    # The garbage collector may close a generator on one of its own threads, which cannot wait.
    with contextlib.suppress(RuntimeError):
        pool.shutdown(wait=True, cancel_futures=True)


def _threads(count: int) -> Executor:
    return ThreadPoolExecutor(count, thread_name_prefix="fnn.data.stream")


def _some(items: Iterable[Any], count: int) -> Iterable[Any]:
    return itertools.islice(items, count)


# --- processes
#
# Grain 0.2.18 would take the order as it is given, begin at any batch and report a killed worker.
# But an example's error arrives without its number and its cause, Ctrl-C prints a traceback for
# each worker, shared memory is left over, and workers outlive a parent that is killed.


def _processes(work: Work, count: int) -> tuple[Executor, Work]:
    """New interpreters, since a fork of a process that runs JAX may hang; each gets `work` once."""
    try:
        sent = pickle.dumps(work)
    except Exception as error:
        with errors.within("stream"):
            raise errors.InputError(
                "a source and a transform that can be pickled, to send them to processes",
                f"{type(error).__name__}: {error}",
                "define functions at the top of a module, or use threads=",
            ) from error
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, _start, (sent,)), _do


def _died() -> errors.DataError:
    error = errors.DataError(
        "worker processes that live as long as they are needed",
        "one that has ended: killed, as for want of memory, or crashed",
        "use fewer processes=, or threads=; a script that starts processes does so below "
        'if __name__ == "__main__":',
    )
    error.layer = "stream"
    return error


_held: list[Any] = []  # in a worker: the work, as it was sent and then unpickled


def _start(sent: bytes) -> None:
    """In a new worker: what must be so before its first work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    threading.Thread(target=_end_with_parent, daemon=True).start()
    jax.config.update("jax_platforms", "cpu")  # accelerators are the parent's
    _held[:] = [sent]


def _end_with_parent() -> None:
    """A parent that was killed has told nobody to end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _do(item: Any) -> Any:
    """In a worker: the work on an item."""
    if isinstance(_held[0], bytes):
        try:
            _held[0] = pickle.loads(_held[0])
        except Exception as error:
            raise errors.DataError(
                "a source and a transform that workers can import",
                f"{type(error).__name__}: {error}",
                "define functions at the top of a module, or use threads=",
            ) from error
    return _held[0](item)
