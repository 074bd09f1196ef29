"""A run of several processes that is broken again and again.

    python lives.py directory processes kills stops

Every process is a fork of this one, which has imported jax but started no device.
"""

import functools
import os
import pathlib
import random
import shutil
import signal
import socket
import sys
import time
import traceback

os.environ["JAX_PLATFORMS"] = "cpu"
flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
os.environ["XLA_FLAGS"] = " ".join([*flags, "--xla_force_host_platform_device_count=2"])

import jax  # noqa: E402
import numpy as np  # noqa: E402

import fnn  # noqa: E402

HEARTBEAT, AT_ONCE, LONGEST = 3, 5.0, 200.0  # seconds
EPOCHS, EXAMPLES, BATCH, EVERY = 6, 96, 16, 3
BREAKS = 3  # of one run
RNG = np.random.default_rng(0)
DATA = {
    "image": RNG.normal(size=(EXAMPLES, 8)).astype("f4"),
    "label": RNG.integers(0, 3, EXAMPLES).astype("i4"),
}
NET = fnn.serial(fnn.dense(32), jax.nn.relu, fnn.dropout(0.1), fnn.dense(3))
TX = fnn.optim.adam(1e-2)
LOSS = fnn.train.supervised(NET, fnn.losses.softmax_cross_entropy)


def main_of(directory, wait, say, refuses):
    """What each process runs: a training run that goes on from its newest checkpoint."""
    events = 0

    def slowly(event):
        nonlocal events
        events += 1
        if events == wait:
            os.write(say, b"!")
        time.sleep(0.02 if wait else 0)

    def main():
        mesh = fnn.sharding.mesh(data=-1)
        placed = fnn.sharding.plan(mesh, NET, TX, (BATCH, 8), fsdp="data", least=64)
        ts = fnn.train.init(NET, TX, jax.random.key(0), (BATCH, 8), shardings=placed)
        step = fnn.train.step(LOSS, TX, shardings=placed)
        source = fnn.data.stream(DATA, BATCH, fnn.train.data_key(ts), device=placed.batch_sharding)
        keeper = fnn.checkpoint.Keeper(directory / "kept", every=EVERY, keep=2)
        best = fnn.train.patience("eval/loss", 2, mode="min")
        signals = [fnn.train.stop_on_signal(), fnn.train.stop_on_nan(every=7), best]
        evaluate = fnn.train.evaluator(
            NET, DATA, {"loss": fnn.losses.softmax_cross_entropy}, shardings=placed
        )
        log = fnn.log.jsonl(directory / "log.jsonl", overwrite=True)
        ts, history = fnn.train.fit(
            step,
            ts,
            source,
            epochs=EPOCHS,
            evaluate=evaluate,
            callbacks=[slowly, log, keeper, *signals],
            resume=keeper,
            progress=False,
        )
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        params = jax.jit(lambda params: params, out_shardings=whole)(ts.params)
        if jax.process_index() == 0:
            values = fnn.tree.to_paths(jax.tree.map(np.asarray, params))
            values["eval"] = history["eval"]["loss"]
            np.savez(directory / "end.npz", loss=history["train"]["loss"], **values)
        if refuses:
            labels = jax.numpy.asarray(DATA["label"])
            plain = jax.tree.map(np.asarray, params)  # of this process alone
            losses = fnn.losses.softmax_cross_entropy(NET(plain, DATA["image"]), labels)
            np.testing.assert_allclose(evaluate(ts)["loss"], losses.mean(), rtol=1e-5)
            first = fnn.train.init(NET, TX, jax.random.key(0), (BATCH, 8), shardings=placed)
            wanted = history["train"]["loss"][: EXAMPLES // BATCH]
            spread = jax.tree.map(
                lambda x: jax.make_array_from_callback(
                    x.shape, placed.batch_sharding, x.__getitem__
                ),
                DATA,
            )
            for data in (DATA, spread):  # the batches of the stream, of whole data
                _, arrays = fnn.train.fit(
                    step, first, data, epochs=1, batch_size=BATCH, progress=False
                )
                np.testing.assert_array_equal(arrays["train"]["loss"], wanted)
            refusals(placed, ts, step)

    return main


def refusals(placed, ts, step):
    """What each process does differently, and what it is told."""
    me, count = jax.process_index(), jax.process_count()
    batch = {name: x[: BATCH // count] for name, x in DATA.items()}
    first = {name: x[: BATCH // count - me] for name, x in DATA.items()}
    rolled = jax.tree.map(lambda x: np.roll(x, me, 0), DATA)
    other = fnn.train.init(NET, TX, jax.random.key(me), (BATCH, 8), shardings=placed)
    own = fnn.train.init(NET, TX, jax.random.key(0), (BATCH, 8))
    steps = fnn.train.step(LOSS, fnn.optim.adam(1e-2 * (1 + me)), shardings=placed)
    fresh = fnn.train.step(LOSS, TX, shardings=placed)
    fit = functools.partial(fnn.train.fit, batch_size=BATCH, progress=False)
    stream = fnn.data.stream(DATA, BATCH, jax.random.key(me), device=placed.batch_sharding)
    wrong = {
        "rows": lambda: step(ts, first),
        "params": lambda: fresh(other, batch),
        "program": lambda: steps(ts, batch),
        "alone": lambda: fnn.train.step(LOSS, TX)(own, batch),
        "epochs": lambda: fit(step, ts, DATA, epochs=1 + me),
        "data": lambda: fit(step, ts, rolled, epochs=1),
        "stream": lambda: fnn.train.fit(step, ts, stream, epochs=1, progress=False),
        "batches": lambda: fnn.train.fit(
            step, ts, lambda epoch: [batch] * (2 + me), epochs=1, progress=False
        ),
        "whole stream": lambda: fnn.train.fit(
            step, ts, fnn.data.stream(DATA, BATCH, None), epochs=1, progress=False
        ),
        "facts": lambda: fnn.distributed.check_agreement({"rate": 0.1 * me, "n": 3}, "options"),
    }
    for name, call in wrong.items():
        try:
            call()
        except fnn.FnnError as error:
            print(f"REFUSED {name}: {error}", flush=True)
    fnn.distributed.check_agreement(ts, "training state")


class Life:
    """The processes of one life, which print to files of their own."""

    def __init__(self, directory, count, wait=0, refuses=False):
        directory.mkdir(exist_ok=True)
        self.directory, self.pids, self.statuses = directory, [], {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        self.started, say = os.pipe()
        for i in range(count):
            pid = os.fork()
            if not pid:
                self._live(main_of(directory, wait, say, refuses), coordinator, count, i)
            self.pids.append(pid)
        os.close(say)

    def _live(self, main, coordinator, count, i):
        try:
            out = os.open(self.directory / f"{i}.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(out, 1)
            os.dup2(out, 2)
            fnn.distributed.run(
                main, heartbeat=HEARTBEAT, coordinator=coordinator, processes=count, process=i
            )
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(9)

    def wait(self, pids, seconds):
        """The seconds until these have ended."""
        start = time.monotonic()
        while left := set(pids) - set(self.statuses):
            for pid in left:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.statuses[pid] = os.waitstatus_to_exitcode(status)
            if time.monotonic() > start + seconds:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"{len(left)} still there after {seconds} s: {self.said()}")
            time.sleep(0.01)
        return time.monotonic() - start

    def to_the_end(self):
        self.wait(self.pids, LONGEST)
        os.close(self.started)
        assert set(self.statuses.values()) == {0}, self.said()
        return dict(np.load(self.directory / "end.npz"))

    def broken(self, number, victim, after):
        """The seconds from a signal to one process to the end of the others, none of them well."""
        assert os.read(self.started, 1), self.said()
        os.close(self.started)
        time.sleep(after)
        os.kill(self.pids[victim], number)
        others = [pid for pid in self.pids if pid != self.pids[victim]]
        seconds = self.wait(others, AT_ONCE if number == signal.SIGKILL else 2 * HEARTBEAT)
        os.kill(self.pids[victim], signal.SIGKILL)
        self.wait(self.pids, LONGEST)
        assert all(self.statuses[pid] != 0 for pid in self.pids), self.statuses
        if number == signal.SIGKILL:
            texts = [(self.directory / f"{i}.txt").read_text() for i in range(len(self.pids))]
            texts.pop(victim)
            assert any(f"process {victim} has died" in text for text in texts), texts
        return seconds

    def said(self):
        return {i: (self.directory / f"{i}.txt").read_text()[-1500:] for i in range(len(self.pids))}


def same(ended, wanted):
    for name, value in wanted.items():
        np.testing.assert_array_equal(ended[name], value, err_msg=name)


def main(root, count, kills, stops):
    root, rng = pathlib.Path(root), random.Random(0)
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    wanted = Life(root / "whole", count, refuses=True).to_the_end()
    numbers = [signal.SIGKILL] * kills + [signal.SIGSTOP] * stops
    rng.shuffle(numbers)
    times = {signal.SIGKILL: [], signal.SIGSTOP: []}
    for i, number in enumerate(numbers):
        directory = root / f"run-{i // BREAKS}"
        victim = 0 if i % 2 else rng.randrange(1, count)
        life = Life(directory, count, wait=rng.randrange(2, 8))
        times[number].append(life.broken(number, victim, rng.uniform(0, 0.1)))
        if i == 0 and kills > 1:
            shutil.copytree(directory, root / "fewer")
        if i % BREAKS == BREAKS - 1 or i == len(numbers) - 1:
            same(Life(directory, count).to_the_end(), wanted)
    if kills > 1:
        life = Life(root / "asked", count, wait=4)  # one is asked to end, and all save and do
        os.read(life.started, 1)
        os.kill(life.pids[1], signal.SIGTERM)
        asked = life.to_the_end()
        assert len(asked["loss"]) < len(wanted["loss"])
        same(Life(root / "asked", count).to_the_end(), wanted)
        for life in (Life(root / "fewer", count // 2), Life(root / "one", 1)):
            ended = life.to_the_end()
            for name, value in wanted.items():
                np.testing.assert_allclose(ended[name], value, atol=1e-6, rtol=1e-6, err_msg=name)
    for number, seconds in times.items():
        print(number.name, *(f"{t:.2f}" for t in sorted(seconds)))
    print("done")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
