"""What TensorBoard's own reader finds in the event files is what was written, once each."""

import io
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from matplotlib import pyplot
from tensorboard.backend.event_processing.event_file_loader import (
    EventFileLoader,
    LegacyEventFileLoader,
)
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

import fnn
from fnn import errors
from fnn.train.step import TrainState
from tests.log.support import Run, evaluation, metrics
from tests.support import asarray


def values(folder, loader=EventFileLoader):
    """All values of all files: [(step, tag, value)]."""
    files = sorted(folder.glob("*tfevents*"))
    return [
        (event.step, value.tag, value)
        for file in files
        for event in loader(str(file)).Load()
        for value in event.summary.value
    ]


def scalars(folder):
    """{tag: [(step, value)]}."""
    found = {}
    for step, tag, value in values(folder):
        number = tensor_util.make_ndarray(value.tensor)
        if number.dtype.kind == "f" and number.shape == ():  # other tensors are pictures
            found.setdefault(tag, []).append((step, number.item()))
    return found


def assert_right(folder, last):
    found = scalars(folder)
    for tag in ("train/loss", "train/correct"):
        assert found[tag] == [(i, float(metrics(i)[tag])) for i in range(1, last + 1)]


@pytest.mark.parametrize("per_call", [1, 32])
def test_scalars(tmp_path, per_call):
    Run(per_call=per_call, evaluate=100).to(200, fnn.log.tensorboard(tmp_path))
    assert_right(tmp_path, 200)
    steps = [100, 200] if per_call == 1 else [128, 200]
    wanted = [(step, float(evaluation(step)["eval/accuracy"])) for step in steps]
    assert scalars(tmp_path)["eval/accuracy"] == wanted

    accumulator = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    accumulator.Reload()  # what the server itself uses
    found = accumulator.Tensors("train/loss")
    assert [event.step for event in found] == list(range(1, 201))
    assert accumulator.SummaryMetadata("train/loss").plugin_data.plugin_name == "scalars"


def test_scalars_of_any_dtype_are_exact(tmp_path):
    given = {
        "train/third": np.float64(1 / 3), "train/big": np.int64(2**40 + 1),
        "train/nan": np.float32(np.nan), "train/inf": np.float32(-np.inf),
        "train/low": np.asarray(jnp.bfloat16(0.1)), "train/yes": np.asarray(True),
        "train/huge": np.float64(1e300), "train/each": np.array([[1.5, 2.5]], np.float32),
    }  # fmt: skip
    Run(lambda step: given).to(1, fnn.log.tensorboard(tmp_path))
    found = {tag: value for tag, [(_, value)] in scalars(tmp_path).items()}
    each = given.pop("train/each")
    assert found.pop("train/each/0/0") == each[0, 0] and found.pop("train/each/0/1") == each[0, 1]
    np.testing.assert_array_equal(
        [found[name] for name in given], [float(value) for value in given.values()]
    )
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert accumulator.SummaryMetadata("train/third").plugin_data.plugin_name == "scalars"


def test_histograms_of_params_and_of_what_a_function_gives(tmp_path):
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(30, 20)).astype(np.float32)
    bias = asarray([1.0, 1.0, np.nan, np.inf], jnp.bfloat16)
    params = {"dense1": {"kernel": asarray(kernel), "bias": bias, "none": jnp.zeros((0, 3))}}
    ts = TrainState(jnp.int32(0), params, {}, (), jax.random.key(0))
    histograms = {
        "params": lambda event: event.train_state.params,
        "gradients": lambda event: jax.tree.map(lambda a: 2 * a, event.train_state.params),
    }
    callback = fnn.log.tensorboard(tmp_path, histograms_every=10, histograms=histograms)
    Run(train_state=ts, per_call=4).to(30, callback)
    found = {}
    for step, tag, value in values(tmp_path, LegacyEventFileLoader):
        if value.HasField("histo"):
            found.setdefault(tag, []).append((step, value.histo))
    assert {tag: [step for step, _ in some] for tag, some in found.items()} == {
        f"{name}/dense1/{leaf}": [12, 20, 30]
        for name in ("params", "gradients")
        for leaf in ("kernel", "bias")
    }
    for name, factor in (("params", 1), ("gradients", 2)):
        _, histogram = found[f"{name}/dense1/kernel"][0]
        wanted = factor * kernel.astype(np.float64).ravel()
        moments = histogram.min, histogram.max, histogram.num, histogram.sum, histogram.sum_squares
        oracle = wanted.min(), wanted.max(), wanted.size, wanted.sum(), np.sum(wanted**2)
        np.testing.assert_allclose(moments, oracle, rtol=1e-12)
        edges, counts = np.array(histogram.bucket_limit), np.array(histogram.bucket)
        for low, high, count in zip(edges[:-2], edges[1:-1], counts[1:-1], strict=True):
            assert count == np.sum((wanted >= low) & (wanted < high))
        assert counts[0] == 0 and counts.sum() == wanted.size
    _, histogram = found["params/dense1/bias"][0]
    assert (histogram.num, histogram.min, histogram.max) == (2, 1, 1)
    assert scalars(tmp_path)["params/dense1/bias/not_finite"] == [(12, 2), (20, 2), (30, 2)]

    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    metadata = accumulator.SummaryMetadata("params/dense1/kernel")
    assert metadata.plugin_data.plugin_name == "histograms"


def test_images_and_figures_come_after_evaluations_and_at_the_end(tmp_path):
    shades = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    colours = np.random.default_rng(0).random((2, 5, 6, 3))
    drawn = []

    def figure(event):
        drawn.append(pyplot.figure(figsize=(2, 1), dpi=100))
        return drawn[-1]

    images = {
        "eval/shades": lambda event: shades,
        "eval/colours": lambda event: colours,
        "eval/alpha": lambda event: np.ones((2, 3, 4), np.float32) * [0, 0.5, 1, 2],
        "eval/late": lambda event: jnp.zeros((2, 2, 1)) if event.step > 20 else None,
    }
    callback = fnn.log.tensorboard(tmp_path, images=images, figures={"eval/figure": figure})
    Run(evaluate=10).to(25, callback)
    Run(start=25, evaluate=10).to(30, callback)
    found = {}
    for step, tag, value in values(tmp_path, LegacyEventFileLoader):
        if value.HasField("image"):
            picture = PIL.Image.open(io.BytesIO(value.image.encoded_image_string))
            assert picture.size == (value.image.width, value.image.height)
            found.setdefault(tag, {})[step] = np.asarray(picture)
    assert {tag: list(steps) for tag, steps in found.items()} == {
        "eval/shades": [10, 20, 25, 30], "eval/colours/0": [10, 20, 25, 30],
        "eval/colours/1": [10, 20, 25, 30], "eval/alpha": [10, 20, 25, 30], "eval/late": [25, 30],
        "eval/figure": [10, 20, 25, 30],
    }  # fmt: skip
    np.testing.assert_array_equal(found["eval/shades"][10], shades)
    np.testing.assert_array_equal(found["eval/colours/1"][20], np.round(colours[1] * 255))
    np.testing.assert_array_equal(found["eval/alpha"][10][0, 0], [0, 128, 255, 255])
    assert found["eval/figure"][10].shape == (100, 200, 4)
    assert len(drawn) == 4 and not any(pyplot.fignum_exists(f.number) for f in drawn)

    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert accumulator.SummaryMetadata("eval/shades").plugin_data.plugin_name == "images"


# --- resuming


def options():
    images = {"eval/image": lambda event: np.full((2, 2), event.step, np.uint8)}
    histograms = {"params": lambda event: np.float32(event.step)}
    return {"images": images, "histograms": histograms, "histograms_every": 20, "interval": 0.0}


def everything(folder):
    """(step, tag, bytes) of each value."""
    return [(step, tag, value.SerializeToString()) for step, tag, value in values(folder)]


@pytest.mark.parametrize(("saved", "killed"), [(30, 30), (30, 75), (50, 51), (40, 90)])
def test_in_a_resumed_run_no_value_stands_twice_or_is_missing(tmp_path, saved, killed):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Run(evaluate=25).to(100, fnn.log.tensorboard(whole, **options()))

    first, run = fnn.log.tensorboard(parts, **options()), Run(evaluate=25)
    run.to(saved, first, end=False)
    state = first.state()
    run.to(killed, first, end=False)
    for last in (saved, killed, saved):  # resumed, killed sooner or later, and resumed again
        second = fnn.log.tensorboard(parts, **options())
        second.restore(jax.tree.map(np.asarray, state))
        Run(start=saved, evaluate=25).to(last, second, end=False)
    Run(start=saved, evaluate=25).to(100, second)
    assert_right(parts, 100)
    assert sorted(everything(parts)) == sorted(everything(whole))

    accumulator = EventAccumulator(str(parts), size_guidance={"tensors": 0})
    accumulator.Reload()
    assert [e.step for e in accumulator.Tensors("train/loss")] == list(range(1, 101))


def test_a_reader_that_is_open_drops_the_later_steps(tmp_path):
    first, run = fnn.log.tensorboard(tmp_path, interval=0.0), Run()
    run.to(30, first, end=False)
    state = first.state()
    run.to(60, first, end=False)
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    accumulator.Reload()
    assert len(accumulator.Tensors("train/loss")) == 60
    second = fnn.log.tensorboard(tmp_path, interval=0.0)
    second.restore(state)
    Run(start=30).to(50, second)
    accumulator.Reload()
    assert [e.step for e in accumulator.Tensors("train/loss")] == list(range(1, 51))


def test_a_torn_record_is_cut(tmp_path):
    first, run = fnn.log.tensorboard(tmp_path, interval=0.0), Run()
    run.to(30, first, end=False)
    state = first.state()
    run.to(31, first, end=False)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    second = fnn.log.tensorboard(tmp_path)
    second.restore(state)
    Run(start=30).to(40, second)
    assert_right(tmp_path, 40)


def test_other_files_are_refused(tmp_path):
    folder = tmp_path / "run"
    first = fnn.log.tensorboard(folder)
    Run().to(30, first)
    state = first.state()
    with pytest.raises(errors.InputError, match="tensorboard: .*overwrite=True"):
        Run().to(3, fnn.log.tensorboard(folder))
    Run().to(3, fnn.log.tensorboard(folder, overwrite=True))
    assert_right(folder, 3)
    for _ in range(2):  # now it is another one, then none
        with pytest.raises(errors.InputError, match="tensorboard: .*put that file back"):
            fnn.log.tensorboard(folder).restore(state)
        shutil.rmtree(folder, ignore_errors=True)
    again = fnn.log.tensorboard(folder, overwrite=True)
    again.restore(state)
    Run(start=30).to(32, again)
    assert [step for step, _ in scalars(folder)["train/loss"]] == [31, 32]

    (folder / "events.out.tfevents.170000.host").write_text("of another program")
    with pytest.raises(errors.InputError, match="no event files"):
        Run().to(3, fnn.log.tensorboard(folder, overwrite=True))


def test_of_many_processes_the_first_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    callback = fnn.log.tensorboard(tmp_path / "run")
    Run(evaluate=5).to(20, callback)
    state = callback.state()
    callback.restore(state)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    first = fnn.log.tensorboard(tmp_path / "run")
    assert jax.tree.structure(first.state()) == jax.tree.structure(state)


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"histograms_every": 0},
        {"histograms": [1]},
        {"images": {"a": 3}},
        {"figures": {"a": None}},
    ],
)
def test_wrong_options_are_refused(tmp_path, options):
    with pytest.raises(errors.FnnError, match="tensorboard"):
        fnn.log.tensorboard(tmp_path, **options)


@pytest.mark.parametrize(
    "picture", [np.zeros((3, 4, 2)), np.zeros(3), np.zeros((0, 3)), np.zeros((3, 3), np.int32)]
)
def test_what_is_no_image_is_refused(tmp_path, picture):
    callback = fnn.log.tensorboard(tmp_path, images={"eval/x": lambda event: picture})
    with pytest.raises(errors.FnnError, match="tensorboard: .*the image eval/x"):
        Run().to(1, callback)


def test_without_tensorboardx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.proto", None)
    with pytest.raises(ImportError, match=r"fnn\[log\]"):
        fnn.log.tensorboard(tmp_path)
