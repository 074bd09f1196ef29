"""A training run that is killed again and again: `python kills.py directory kills seed epochs`.

Every life of it is a fork of this process, which has imported jax but started no device.
"""

import hashlib
import os
import pathlib
import random
import signal
import sys
import time

import jax
import numpy as np

import fnn

EXAMPLES, BATCH, EVERY = 40, 4, 3


def digest(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    parts = [(fnn.errors.path_of(path), np.asarray(leaf).tobytes()) for path, leaf in leaves]
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()


def acknowledge(keeper, file):
    """A callback that notes which step is safe, once it is."""

    def callback(event):
        keeper.wait()
        if event.step in keeper.steps():
            with open(file, "a") as out:
                out.write(f"{event.step} {digest(event.train_state.params)}\n")
                out.flush()
                os.fsync(out.fileno())

    callback.every, callback.last = EVERY, True
    return callback


def slowly(started):
    """A callback that takes its time, and writes a byte once the run has started."""

    def callback(event):
        if event.step % 30 == 1:
            os.write(started, b"!")
        time.sleep(0.002)

    return callback


def live(directory, driver, epochs, started):
    """One life of the run, to its end if nothing kills it."""
    rng = np.random.default_rng(0)
    data = {
        "image": rng.normal(size=(EXAMPLES, 5)).astype("f4"),
        "label": rng.integers(0, 3, EXAMPLES),
    }
    net = fnn.serial(fnn.dense(8), jax.nn.relu, fnn.dropout(0.2), fnn.dense(3))
    schedule = fnn.optim.schedules.cosine(1e-2, epochs * EXAMPLES // BATCH)
    tx = fnn.optim.adam(schedule)
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx)
    ts = fnn.train.init(net, tx, jax.random.key(0), data["image"][:1])
    keeper = fnn.checkpoint.Keeper(directory / "kept", every=EVERY, keep=2)
    ts, history = fnn.train.fit(
        step,
        ts,
        data,
        epochs=epochs,
        batch_size=BATCH,
        driver=driver,
        chunk=4,
        callbacks=[slowly(started), keeper, acknowledge(keeper, directory / "acknowledged")],
        resume=keeper,
        progress=False,
    )
    losses = hashlib.sha256(history["train"]["loss"].tobytes()).hexdigest()
    (directory / "end").write_text(f"{digest(ts.params)} {losses}")


def fork(directory, driver, epochs):
    """A life in a process of its own: (its number, where it says that it has started)."""
    started, say = os.pipe()
    pid = os.fork()
    if pid:
        os.close(say)
        return pid, started
    try:
        live(directory, driver, epochs, say)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(1)


def check(directory):
    """The newest acknowledged step is there, byte by byte."""
    file = directory / "acknowledged"
    lines = file.read_text().splitlines() if file.exists() else []
    lines = [line.split() for line in lines if len(line.split()) == 2 and len(line) > 64]
    if not lines:
        return
    step, wanted = int(lines[-1][0]), lines[-1][1]
    keeper = fnn.checkpoint.Keeper(directory / "kept")
    assert keeper.latest() >= step, (keeper.steps(), step)
    acknowledged = dict(map(tuple, lines))
    for kept in keeper.steps():  # each complete
        params = keeper.restore(step=kept, at="train_state/params")
        if str(kept) in acknowledged:
            assert digest(params) == acknowledged[str(kept)], kept
    if step in keeper.steps():
        assert digest(keeper.restore(step=step, at="train_state/params")) == wanted


def main(root, kills, seed, epochs):
    rng, root = random.Random(seed), pathlib.Path(root)
    ends, killed, runs = {}, 0, 0
    for driver in ("loop", "chunk", "scan"):
        (root / driver).mkdir()
        pid, started = fork(root / driver, driver, epochs)
        assert os.waitpid(pid, 0)[1] == 0
        ends[driver] = (root / driver / "end").read_text()
    while killed < kills:
        runs += 1
        driver = ("loop", "chunk", "scan")[runs % 3]
        directory = root / f"run-{runs}"
        directory.mkdir()
        while not (directory / "end").exists():
            pid, started = fork(directory, driver, epochs)
            if killed < kills:
                if rng.random() < 0.9:  # else while it starts, or resumes
                    os.read(started, 1)
                time.sleep(rng.uniform(0, 0.2))
                os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            os.close(started)
            assert status == 0 or os.WIFSIGNALED(status), status
            killed += os.WIFSIGNALED(status)
            check(directory)
        assert (directory / "end").read_text() == ends[driver], driver
    print(f"{killed} kills in {runs} runs")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
