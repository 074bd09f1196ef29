"""`fit` over a stream is `fit` over its arrays; cut anywhere, it goes on at the next batch."""

import threading

import jax
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.data import bucketed, stream
from fnn.train import data_key
from tests.data.support import Recorded
from tests.support import QUICK
from tests.train.support import assert_same_bits, data, dense_net, setup

DATA, SIZE, TOTAL = data(n=23), 4, 5  # three examples are left out in each epoch


def fit(source, ts=None, **options):
    start, step = setup()
    options = {"epochs": 3, "progress": False} | options
    return fnn.train.fit(step, start if ts is None else ts, source, **options)


def streamed(key=None, size=SIZE, n=23, **options):
    key = data_key(setup()[0]) if key is None else key
    return stream({name: x[:n] for name, x in DATA.items()}, size, key, **options)


class Cut(Exception):
    pass


def cut_at(step):
    def callback(event):
        if event.step == step and not event.ended:
            raise Cut

    return callback


def no_threads():
    return not any(t.name.startswith("fnn.data.stream") for t in threading.enumerate())


@pytest.mark.parametrize("begun", [0, 3])
def test_the_run_is_bitwise_that_of_arrays(begun):
    ts = setup()[0]._replace(step=jax.numpy.int32(begun))
    want, history = fit(DATA, ts, batch_size=SIZE)
    got, streamed_history = fit(streamed(), ts, driver="auto")
    assert_same_bits(got, want)
    assert_same_bits(streamed_history["train"], history["train"])
    assert streamed_history["driver"] == "loop" and no_threads()


def test_cut_at_random_steps_it_ends_bitwise_as_uncut(tmp_path):
    """Each life begins with nothing but the checkpoints of those before."""
    want, history = fit(DATA, batch_size=SIZE, epochs=9)
    cuts = np.random.default_rng(0).integers(1, 9 * TOTAL, 5 if QUICK else 20)
    for cut in sorted(cuts.tolist()):
        keeper = fnn.checkpoint.Keeper(tmp_path, every=1 + cut % 3)
        keeper.wait()
        try:
            fit(streamed(), resume=keeper, epochs=9, callbacks=[keeper, cut_at(cut)])
        except Cut:
            assert no_threads()
        keeper.wait()
    keeper = fnn.checkpoint.Keeper(tmp_path)
    got, resumed = fit(streamed(), resume=keeper, epochs=9, callbacks=[keeper])
    assert_same_bits(got, want)
    assert_same_bits(resumed["train"], history["train"])


def test_a_resumed_run_reads_nothing_again(tmp_path):
    def step(ts, batch):
        return ts._replace(step=ts.step + 1), {"first": batch["x"][0]}

    def run(source, *callbacks):
        keeper = fnn.checkpoint.Keeper(tmp_path, every=1)
        made = stream(source, SIZE, None, threads=0)
        options = {"epochs": 1, "resume": keeper, "callbacks": [keeper, *callbacks]}
        try:
            return fnn.train.fit(step, setup()[0], made, progress=False, **options)
        finally:
            keeper.wait()

    with pytest.raises(Cut):
        run(Recorded(40), cut_at(7))
    source = Recorded(40)
    _, history = run(source)
    assert source.asked == list(range(6 * SIZE, 40))  # the cut came before step 7 was saved
    assert history["train"]["first"].tolist() == list(range(0, 40, SIZE))


def test_a_resumed_run_with_another_order_is_refused(tmp_path):
    keeper = fnn.checkpoint.Keeper(tmp_path)
    fit(streamed(), epochs=1, callbacks=[keeper])
    buckets = bucketed(
        DATA, SIZE, data_key(setup()[0]), buckets=(4,), lengths=np.full(23, 4), pad={"image": 0}
    )
    for other, got in (
        (streamed(size=5), "batch_size=5, examples=23"),
        (streamed(n=22), "batch_size=4, examples=22"),
        (streamed(key=jax.random.key(9)), "order=threefry2x32 00000000 00000009"),
        (buckets, r"buckets \(4,\)"),
        (streamed(last="fill"), "order=.*, filled"),
        (lambda epoch: [DATA], "batches from a function"),
    ):
        with pytest.raises(errors.OptionError, match=f"the run that is resumed .*, got .*{got}"):
            fit(other, epochs=2, resume=keeper)
    got, _ = fit(DATA, batch_size=SIZE, epochs=2, resume=keeper)  # the arrays of the stream
    assert_same_bits(got, fit(streamed(), epochs=2)[0])


@pytest.mark.parametrize("begin", [0, 2, 5, 7])
def test_a_run_is_replayed(begin):
    kept, replayed = [], []

    def callback(event):
        if event.step == begin:
            kept.append(jax.tree.map(jax.numpy.copy, event.train_state))
        if event.step == 8 and not event.ended:
            replayed.extend(event.replay(kept[0] if kept else None))

    _, history = fit(streamed(), epochs=2, callbacks=[callback])
    losses = [one.metrics["loss"] for one in replayed]
    np.testing.assert_array_equal(losses, history["train"]["loss"][begin:8])
    want = [batch["label"] for epoch in range(2) for batch in streamed()(epoch)]
    for one, label in zip(replayed, want[begin:8], strict=True):
        np.testing.assert_array_equal(one.batch["label"], label)
    assert no_threads()


def test_a_run_that_began_in_an_epoch_is_replayed():
    losses = []

    def callback(event):
        if event.step == 9 and not event.ended:
            losses.extend(one.metrics["loss"] for one in event.replay(None))

    ts = setup()[0]._replace(step=jax.numpy.int32(3))
    _, history = fit(streamed(), ts, epochs=2, callbacks=[callback])
    np.testing.assert_array_equal(losses, history["train"]["loss"][:6])


def test_the_bar_knows_its_end(monkeypatch):
    totals = []

    class Bar(fnn.train.fit.__globals__["Bar"]):
        def __init__(self, total, shown):
            totals.append(total)
            super().__init__(total, shown)

    monkeypatch.setitem(fnn.train.fit.__globals__, "Bar", Bar)
    fit(streamed(), epochs=2)
    assert totals == [2 * TOTAL]


def test_an_error_in_the_step_ends_the_workers():
    def step(ts, batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as error:
        fnn.train.fit(step, setup()[0], streamed(threads=2), epochs=1, progress=False)
    assert no_threads() and error.traceback


def test_stacked_states_share_a_stream():
    def step(ts, batch):
        return ts._replace(step=ts.step + 1), {"label": batch["label"][0]}

    ts = jax.tree.map(lambda *xs: jax.numpy.stack(xs), *[setup()[0]] * 2)
    made = streamed(device=False)
    _, history = fnn.train.fit(step, ts, made, epochs=1, progress=False)
    assert history["train"]["label"].tolist() == [batch["label"][0] for batch in made(0)]


def test_a_stream_is_evaluated():
    ts, net = setup()[0], dense_net()
    metrics = {"accuracy": fnn.metrics.accuracy(), "loss": fnn.losses.softmax_cross_entropy}
    evaluate = fnn.train.evaluator(net, DATA, metrics, batch_size=SIZE)
    want = evaluate(ts)
    got = fnn.train.evaluator(net, streamed(last="fill"), metrics)(ts)
    for name in metrics:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6)
    with pytest.raises(errors.OptionError, match="evaluator: expected a stream of all examples"):
        fnn.train.evaluator(net, streamed(), metrics)
    for other in (streamed(last="fill")(0), lambda epoch: [DATA]):
        with pytest.raises(errors.InputError, match='arrays or a stream, got .*last="fill"'):
            fnn.train.evaluator(net, other, metrics)
    with pytest.raises(errors.OptionError, match="stream of all examples, got part 1 of 2 of its"):
        fnn.train.evaluator(net, streamed(last="fill", shard=(1, 2)), metrics)


def test_an_error_in_an_evaluation_ends_the_workers():
    def metric(outputs, labels):
        raise ZeroDivisionError

    evaluate = fnn.train.evaluator(dense_net(), streamed(last="fill", threads=2), {"m": metric})
    with pytest.raises(ZeroDivisionError) as error:
        evaluate(setup()[0])
    assert no_threads() and error.traceback


def test_what_a_stream_cannot_do_is_refused():
    for driver in ("scan", "chunk"):
        with pytest.raises(errors.OptionError, match="keeps them on the device, got a stream"):
            fit(streamed(), driver=driver)
    for driver in ("loop", "scan", "auto"):
        with pytest.raises(errors.InputError, match="got a DataFrame; .*fnn.data.from_frame"):
            fit(pytest.importorskip("pandas").DataFrame(DATA["image"]), batch_size=4, driver=driver)
    with pytest.raises(errors.OptionError, match="the stream's batch_size=4, or none, got 5"):
        fit(streamed(), batch_size=5)
    ts, step = setup()
    with pytest.raises(
        errors.InputError, match="run: expected arrays, .*Stream; call fnn.train.fit"
    ):
        fnn.train.run(step, ts, streamed(), steps=2, batch_size=SIZE)
    fit(streamed(), batch_size=SIZE, epochs=1)
