import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn.core.errors import OptionError
from fnn.serve.batcher import Batcher, powers


class Held:
    """A program y = 2 x that waits until it is let go, and remembers its batches."""

    def __init__(self):
        self.go, self.batches = threading.Event(), []

    def __call__(self, x):
        self.batches.append(x.copy())
        assert self.go.wait(10)
        if (x == 13).any():
            raise ValueError("thirteen")
        return [2 * x]


def rows(*values):
    return (np.array(values, np.float32).reshape(-1, 1),)


def run(body, program, sizes=(1, 2, 4, 8), queue=100, **options):
    """Run a coroutine function of a batcher, and see that it ends without a thread."""

    before = set(threading.enumerate())

    async def whole():
        batcher = Batcher(program, sizes=sizes, queue=queue, **options)
        try:
            return await body(batcher)
        finally:
            await batcher.close()
            assert set(threading.enumerate()) <= before

    return asyncio.run(asyncio.wait_for(whole(), 20))


async def submit_first(batcher, x):
    """Submit, and wait until its batch has started."""
    asked = batcher.submit(x)
    while len(batcher):
        await asyncio.sleep(0)
    return asked


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_every_request_gets_its_own_rows_and_batches_are_of_the_sizes(counts):
    program, start = Held(), np.cumsum([0, *counts])
    program.go.set()

    async def body(batcher):
        xs = [rows(*range(100 + start[i], 100 + start[i + 1])) for i in range(len(counts))]
        return await asyncio.gather(*(batcher.submit(x) for x in xs))

    ys = run(body, program, sizes=(1, 2, 4, 6))
    for i, (y,) in enumerate(ys):
        np.testing.assert_array_equal(y[:, 0], 2.0 * np.arange(100 + start[i], 100 + start[i + 1]))
    assert {len(batch) for batch in program.batches} <= {1, 2, 4, 6}


def test_what_waits_while_a_batch_runs_is_run_together():
    program = Held()

    async def body(batcher):
        asked = [await submit_first(batcher, rows(0))]
        asked += [batcher.submit(rows(i)) for i in range(1, 8)]
        assert len(batcher) == 7
        program.go.set()
        await asyncio.gather(*asked)

    run(body, program)
    assert [len(batch) for batch in program.batches] == [1, 8]
    np.testing.assert_array_equal(program.batches[1][:, 0], [1, 2, 3, 4, 5, 6, 7, 1])


def test_requests_that_come_one_after_the_other_without_a_pause_are_run_together():
    program = Held()
    program.go.set()

    async def ask(batcher, i):
        for _ in range(2 * i):  # passes of the event loop
            await asyncio.sleep(0)
        return await batcher.submit(rows(i))

    async def body(batcher):
        return await asyncio.gather(*(ask(batcher, i) for i in range(10)))

    ys = run(body, program)
    assert [len(batch) for batch in program.batches] == [8, 2]  # the first is full
    np.testing.assert_array_equal(np.ravel(ys), np.arange(10) * 2)


def test_inputs_of_different_shapes_are_not_mixed():
    program = Held()

    async def body(batcher):
        asked = [batcher.submit((np.full((1, n), n, np.float32),)) for n in (1, 2, 3, 2, 3)]
        program.go.set()
        return await asyncio.gather(*asked)

    ys = run(body, program)
    assert [y.shape for (y,) in ys] == [(1, n) for n in (1, 2, 3, 2, 3)]
    assert [batch.shape for batch in program.batches] == [(1, 1), (2, 2), (2, 3)]


def test_rows_may_lie_along_another_axis_of_an_output():
    async def body(batcher):
        return await asyncio.gather(*(batcher.submit(rows(i, i + 1)) for i in (1, 5)))

    def program(x):
        return [np.stack([x, -x]), x[:, 0]]

    (a, b), (c, d) = run(body, program, axes=(1, 0))
    np.testing.assert_array_equal(a[:, :, 0], [[1, 2], [-1, -2]])
    np.testing.assert_array_equal(c[:, :, 0], [[5, 6], [-5, -6]])
    np.testing.assert_array_equal([b, d], [[1, 2], [5, 6]])


def test_a_failure_is_of_its_batch_alone():
    program = Held()

    async def body(batcher):
        first = await submit_first(batcher, rows(1))
        bad, beside = batcher.submit(rows(13)), batcher.submit(rows(2))
        program.go.set()
        np.testing.assert_array_equal(*await first, [[2]])
        for failed in (bad, beside):
            with pytest.raises(RuntimeError, match="the program failed") as found:
                await failed
            assert isinstance(found.value.__cause__, ValueError)
        np.testing.assert_array_equal((await batcher.submit(rows(3)))[0], [[6]])

    run(body, program)


def test_who_leaves_the_queue_is_not_run():
    program = Held()

    async def body(batcher):
        running = await submit_first(batcher, rows(0))
        leaves, stays = batcher.submit(rows(1)), batcher.submit(rows(2))
        leaves.cancel()
        running.cancel()
        await asyncio.sleep(0)
        assert len(batcher) == 1
        program.go.set()
        np.testing.assert_array_equal(*await stays, [[4]])

    run(body, program)
    assert [batch[0, 0] for batch in program.batches] == [0, 2]


def test_a_full_queue_refuses_and_a_closed_one_answers_what_waits():
    program = Held()

    async def body(batcher):
        asked = [await submit_first(batcher, rows(0))]
        asked += [batcher.submit(rows(i)) for i in (1, 2)]
        assert batcher.full
        with pytest.raises(asyncio.QueueFull):
            batcher.submit(rows(9))
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        program.go.set()
        assert [float(y[0, 0]) for (y,) in await asyncio.gather(*asked)] == [0, 2, 4]
        await closing
        with pytest.raises(asyncio.QueueFull):
            batcher.submit(rows(9))

    run(body, program, queue=2)


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 5)), (8, (1, 2, 4, 8))]
)
def test_sizes_are_powers_of_two_and_the_largest(most, sizes):
    assert powers(most) == sizes


def test_a_batch_has_at_least_one_row():
    with pytest.raises(OptionError, match="max_batch"):
        powers(0)
