"""The examples run, and learn: each for a few steps, with its pictures in a temporary folder."""

import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.gallery.support import EXAMPLES, example, fewer, numbers, run
from tests.support import asarray

# --- mnist_cnn


def test_mnist_cnn(tmp_path, monkeypatch, capsys):
    cnn = example("mnist_cnn")
    out = run(cnn, "--data digits --epochs 1", tmp_path, monkeypatch, capsys)
    assert "test accuracy" in out and "parameters on" in out
    assert {p.name for p in tmp_path.iterdir()} == {"curves.png", "mistakes.png"}


# --- gpt


def test_gpt(tmp_path, monkeypatch, capsys):
    lm = example("gpt")
    small = dict(FEATURES=16, HEADS=2, DEPTH=2, WINDOW=24, BATCH_SIZE=4, WARMUP=1, SAMPLES=2)
    for name, value in small.items():
        monkeypatch.setattr(lm, name, value)
    monkeypatch.setattr(lm, "held_text", lm.held_text[:2000])
    monkeypatch.setattr(lm, "net", lm.transformer())
    monkeypatch.setattr(lm, "writer", lm.transformer(cache=lm.WINDOW))

    out = run(lm, "--steps 20 --interval 10", tmp_path, monkeypatch, capsys)
    first, last = numbers(r"(\S+) after \d+ steps\n", out)
    assert last < first < 2 * np.log2(len(lm.alphabet))
    assert (tmp_path / "gpt.png").stat().st_size > 10_000
    *written, times = out.split("-" * 80 + "\n")[1:]
    assert len(written) == 2 and all(text.startswith(lm.PROMPT) for text in written)
    assert len(written[0]) == lm.WINDOW + 1  # and the end of the line
    assert len(numbers(r"(\S+) s with", times)) == 2

    # Reading in pieces, through the cache, tells what reading at once tells; so does writing.
    x = asarray(lm.windows(lm.encode(lm.held_text), [0, 100])["x"])
    params, state = lm.writer.init(jax.random.key(0), x)
    read, pieces = jax.jit(lm.writer.apply), []
    for piece in (x[:, :12], x[:, 12:]):
        logits, state = read(params, state, piece)
        pieces.append(logits)
    whole = jax.jit(lm.net)(params, x)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, atol=1e-4)
    given = params, np.asarray(x[:, :4]), jax.random.key(1)
    np.testing.assert_array_equal(lm.write(*given), lm.write_without_cache(*given))


def test_gpt_holds_out_text_that_training_does_not_hold():
    lm = example("gpt")
    paragraphs = [set(text.split("\n\n")) for text in (lm.train_text, lm.held_text)]
    assert len(paragraphs[1]) > 100 and not paragraphs[0] & paragraphs[1]
    text = lm.train_text[: lm.WINDOW + 1]
    window = lm.windows(lm.encode(text), [0])
    for name, wanted in (("x", text[:-1]), ("next", text[1:])):
        assert "".join(lm.alphabet[i] for i in window[name][0]) == wanted


# --- quantization


def test_quantization(tmp_path, monkeypatch, capsys):
    few, x = example("quantization"), jax.random.normal(jax.random.key(0), (40, 64))
    net = fnn.dense(4)

    def tiny():
        held = x, jnp.arange(40) % 4
        return net, lambda: net.init(jax.random.key(1), x)[0], held, x[:8], few.bits

    rows = {name: few.STORED[name] for name in ("int8", "int4, groups of 32, clipped")}
    for name, value in dict(REPEATS=1, STORED=rows, NETWORKS={"tiny": (tiny, "bits")}).items():
        monkeypatch.setattr(few, name, value)
    out = run(few, "", tmp_path, monkeypatch, capsys)
    named = r"(?:float32|int8|clipped) +"
    bits = numbers(named + r"([\d.]+) ", out)
    assert len(bits) == 3 and 0 < abs(bits[1] - bits[0]) < abs(bits[2] - bits[0]) < 0.2
    sizes = numbers(named + r"\S+ +([\d,]+) ", out.replace(",0", "0"))
    assert sizes == [1040, 256 + 16 + 16, 128 + 32 + 16]
    kept = fnn.checkpoint.restore(tmp_path / "tiny")  # the next run takes these
    np.testing.assert_array_equal(kept["kernel"], tiny()[1]()["kernel"])
    for make in (few.language, few.digits):
        own, _, held, seen, _ = make()
        assert own.specs(held[0][:1]) == own.specs(seen[:1]) and len(seen) == 32


# --- vae


def test_vae(tmp_path, monkeypatch, capsys):
    fewer(monkeypatch, 600, 100)
    out = run(example("vae"), "--epochs 3", tmp_path, monkeypatch, capsys)
    bounds = numbers(r"(\S+) nats per test image:", out)
    assert len(bounds) == 3 and bounds[0] < bounds[1] < bounds[2]
    parts = [numbers(rf"image: {part}", out)[-1] for part in (r"-(\S+) - \S+\n", r"-\S+ - (\S+)\n")]
    assert min(parts) > 0 and abs(bounds[2] + sum(parts)) < 0.2  # as rounded
    assert (tmp_path / "vae.png").stat().st_size > 10_000


# --- distillation


@pytest.mark.full
def test_distillation(tmp_path, monkeypatch, capsys):
    distillation = example("distillation")
    monkeypatch.setattr(distillation, "PAIRS", 2)
    monkeypatch.setattr(distillation, "INTERVAL", 15)
    monkeypatch.setattr(distillation, "BATCH_SIZE", 32)
    fewer(monkeypatch, 600, 200)
    out = run(distillation, "--steps 30 --teacher-epochs 5", tmp_path, monkeypatch, capsys)
    (teacher,) = numbers(r"teacher: (\S+)%", out)
    students = numbers(r"learning from .*: (\S+)%", out)
    assert teacher > 60 and len(students) == 2 and min(students) > 60
    assert (tmp_path / "distillation.png").stat().st_size > 10_000


# --- functions


def test_functions(tmp_path, monkeypatch, capsys):
    out = run(example("functions"), "--steps 300", tmp_path, monkeypatch, capsys)
    assert "same first params: True" in out
    apart = numbers(r"differ by at most (\S+)\n", out) + numbers(r"within (\S+)\n", out)
    assert len(apart) == 3 and max(apart) < 1e-5
    (first,), (last,) = numbers(r"residual (\S+) to", out), numbers(r" to (\S+)\nlargest", out)
    assert last < first / 20
    assert numbers(r"largest error (\S+)\n", out)[0] < 0.05
    assert (tmp_path / "functions.png").stat().st_size > 10_000


def test_functions_residual_of_the_exact_solution_is_zero(monkeypatch):
    """With sin(pi x) / (x (1 - x)) in the network's place, u is the exact solution."""
    functions = example("functions")
    monkeypatch.setattr(functions, "chain", lambda _, x: jnp.sin(jnp.pi * x) / (x * (1 - x)))
    rest = [functions.residual({}, jnp.float32(x)) for x in (0.2, 0.5, 0.7)]
    np.testing.assert_allclose(rest, 0, atol=1e-4)


# --- resnet_cifar


@pytest.mark.full
def test_resnet_cifar(tmp_path, monkeypatch, capsys):
    flags = "--epochs 3 --width 2"
    out = run(example("resnet_cifar"), flags, tmp_path, monkeypatch, capsys)
    accuracies = numbers(r"test accuracy (\S+)%", out)
    assert len(accuracies) == 3 and accuracies[2] > 30  # chance is 10
    assert (tmp_path / "resnet_cifar.png").stat().st_size > 10_000


def test_resnet_cifar_has_the_size_that_is_known():
    """ResNet-18 for CIFAR has 11,173,962 parameters in every library."""
    net = example("resnet_cifar").resnet18(10, width=64)
    params, state = net.specs((1, 32, 32, 3))
    sizes = [sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for tree in (params, state)]
    assert sizes == [11_173_962, 2 * 5 * (64 + 128 + 256 + 512)]


def test_resnet_cifar_augmentations_keep_the_size_of_the_images():
    settings = example("resnet_cifar").SETTINGS
    for name, shape in (("digits", (8, 8, 1)), ("cifar10", (32, 32, 3))):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        assert jax.eval_shape(settings[name].augment, jax.random.key(0), x).shape == shape


# --- optimizers


@pytest.mark.full
def test_optimizers(tmp_path, monkeypatch, capsys):
    race = example("optimizers")
    assert len(race.OPTIMIZERS) >= 25
    monkeypatch.setattr(race, "RATES", race.RATES[::3])
    flags = "--only sgd,adam,lbfgs --steps 30 --valley-steps 40"
    out = run(race, flags, tmp_path, monkeypatch, capsys)
    assert max(numbers(r"digits +(\S+)% wrong", out)) < 60
    assert numbers(r"lbfgs .*valley +(\S+) by line search", out)[0] < 1e-6
    assert (tmp_path / "optimizers.png").stat().st_size > 10_000


# --- lstm_sequences


@pytest.mark.full
def test_lstm_sequences(tmp_path, monkeypatch, capsys):
    sequences = example("lstm_sequences")
    small = dict(UNITS=8, HIDDEN=4, LONG=10, INTERVAL=5, BATCH_SIZE=16, HELD_OUT=200)
    for name, value in small.items():
        monkeypatch.setattr(sequences, name, value)
    gru = sequences.fnn.gru(4, return_sequence=False)
    monkeypatch.setattr(sequences, "LAYERS", {"GRU": gru})

    out = run(sequences, "--steps 60", tmp_path, monkeypatch, capsys)
    assert numbers(r"(\S+)% right", out)[0] > 60
    assert numbers(r"error (\S+),", out)[0] < 0.5
    assert (tmp_path / "lstm_sequences.png").stat().st_size > 10_000


def test_an_addition_is_what_its_marks_say():
    sequences = example("lstm_sequences")
    x, y = map(np.asarray, sequences.additions(jax.random.key(0), 50))
    for (values, marks), total in zip(np.swapaxes(x, 1, 2), y, strict=True):
        assert set(marks) == {0.0, 1.0} and marks.sum() == 2
        assert marks[:50].sum() == 1
        np.testing.assert_allclose(values[marks == 1].sum(), total[0], rtol=1e-6)


# --- char_lm


def test_char_lm(tmp_path, monkeypatch, capsys):
    lm = example("char_lm")
    small = dict(FEATURES=8, HIDDEN=16, STREAMS=4, CHUNK=16, CHUNKS=4, LENGTH=20)
    for name, value in small.items():
        monkeypatch.setattr(lm, name, value)
    monkeypatch.setattr(lm, "train_text", lm.train_text[:2000])
    monkeypatch.setattr(lm, "held_text", lm.held_text[:2000])
    rnns = {
        "learner": (fnn.serial, fnn.lstm(16, stateful=True)),
        "reader": (fnn.serial, fnn.lstm(16)),
        "writer": (fnn.cells.serial, fnn.cells.lstm(16)),
    }
    for name, (join, rnn) in rnns.items():
        monkeypatch.setattr(lm, name, lm.network(join, rnn))

    out = run(lm, "--epochs 3", tmp_path, monkeypatch, capsys)
    first, _, last = numbers(r"(\S+) bits per held-out", out)
    assert last < first < 2 * np.log2(len(lm.alphabet))
    assert "An object " in out
    assert (tmp_path / "char_lm.png").stat().st_size > 10_000


def test_streams_go_on_where_they_end():
    lm = example("char_lm")
    text = lm.streams(lm.held_text, 8)
    assert text["x"].shape == text["next"].shape and text["x"].shape[0] == 8
    np.testing.assert_array_equal(text["x"][:, 1:], text["next"][:, :-1])
    np.testing.assert_array_equal(text["x"][1:, 0], text["next"][:-1, -1])


# --- sweep_learning_rate


def test_sweep_learning_rate(tmp_path, monkeypatch, capsys):
    sweep = example("sweep_learning_rate")
    monkeypatch.setattr(sweep, "RATES", np.float32([1e-6, 1e-2]))
    monkeypatch.setattr(sweep, "STEPS", 30)
    monkeypatch.setattr(sweep, "OPTIMIZERS", [fnn.optim.sgd, fnn.optim.adam])

    out = run(sweep, "--seeds 2", tmp_path, monkeypatch, capsys)
    assert "8 runs of 30 steps" in out
    first = next(line for line in out.splitlines() if line.startswith("\u2502"))
    assert "adam" in first and "0.01" in first and "2/2" in first
    assert (tmp_path / "sweep_learning_rate.png").stat().st_size > 10_000


# --- log_elsewhere


class Service(types.ModuleType):
    """wandb or mlflow, as far as the callbacks use it: what is sent, by step."""

    def __init__(self, name):
        super().__init__(name)
        self.sent, self.ended = {}, 0

    def init(self, **options):
        return self

    start_run = init

    def log(self, values, step):
        assert not self.ended and all(type(value) is float for value in values.values())
        assert step >= max(self.sent, default=0)  # wandb takes steps in order alone
        assert not self.sent.setdefault(step, {}).keys() & values.keys()
        self.sent[step] |= values

    log_metrics = log

    def finish(self):
        self.ended += 1

    end_run = finish


def test_log_elsewhere_prints_without_a_service(tmp_path, monkeypatch, capsys):
    out = run(example("log_elsewhere"), "--epochs 3", tmp_path, monkeypatch, capsys)
    assert len(numbers(r"eval/accuracy (\S+)", out)) == 3
    assert numbers(r"(\S+)% right", out)[0] > 80
    assert (tmp_path / "runs.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_log_elsewhere_sends_what_the_log_has(name, tmp_path, monkeypatch, capsys):
    service = Service(name)
    monkeypatch.setitem(sys.modules, name, service)
    flags = f"--epochs 2 --service {name}"
    run(example("log_elsewhere"), flags, tmp_path, monkeypatch, capsys)
    columns, wanted = fnn.log.read(tmp_path / "run.jsonl"), {}
    for i, step in enumerate(columns["step"]):
        values = {k: v[i] for k, v in columns.items() if "/" in k and np.isfinite(v[i])}
        wanted.setdefault(step, {}).update(values)
    assert service.sent == wanted and service.ended == 1
    assert {"train/loss", "eval/accuracy"} <= set(wanted[max(wanted)])


# --- serve_digits


def test_serve_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    serving = example("serve_digits")
    monkeypatch.setattr(serving, "CLIENTS", 2)
    monkeypatch.setattr(serving, "net", fnn.serial(fnn.flatten(3), fnn.dense(10)))
    fewer(monkeypatch, 900, 100)
    out = run(serving, "--epochs 3", tmp_path, monkeypatch, capsys)
    assert min(numbers(r"clients: (\S+)% right", out)) > 60
    assert numbers(r"differ from the network's by at most (\S+)\n", out)[0] < 1e-3
    seen, faint = numbers(r"(?:drift|digits:) (\d+\.\d+)", out)
    assert seen < faint
    assert "the server ended with code 0" in out


# --- long_run


@pytest.mark.full
def test_long_run(tmp_path, monkeypatch, capsys):
    """The process that is killed is a real one, in the fifth epoch, from step 69 to 85."""
    monkeypatch.setenv("JAX_NUMPY_DTYPE_PROMOTION", "standard")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    run_process, died = subprocess.run, []

    def run_and_note(command, **options):
        done = run_process(command, **options)
        if "--life" in command:
            died.append(time.time())
        return done

    monkeypatch.setattr(subprocess, "run", run_and_note)
    flags = "--data digits --epochs 5 --kills 80"
    out = run(example("long_run"), flags, tmp_path, monkeypatch, capsys)
    (begin,) = numbers(r"killed at step 80, .* step (\d+)\n", out)
    assert 0 < begin <= 70
    columns = fnn.log.read(tmp_path / "killed" / "run.jsonl")
    np.testing.assert_array_equal(columns["time"] < died[0], columns["step"] <= begin)

    assert out.count(": True\n") == 3 and "ended at step 85: 5 epochs" in out
    assert numbers(r"(\S+)% right on test", out)[0] > 60
    assert (tmp_path / "long_run.png").stat().st_size > 10_000


def test_long_run_is_of_as_many_epochs_in_all_of_its_lives(tmp_path, monkeypatch, capsys):
    """So one that ends before it is killed is reported."""
    commands, ended = [], types.SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda command: commands.append(command) or ended)
    with pytest.raises(SystemExit, match="step 80 ended with code 0"):
        run(example("long_run"), "--epochs 3 --kills 80", tmp_path, monkeypatch, capsys)
    assert "--epochs 3" in " ".join(commands[0])


# --- meta_learning_rate


@pytest.mark.full
def test_meta_learning_rate(tmp_path, monkeypatch, capsys):
    meta = example("meta_learning_rate")
    small = dict(STEPS=20, KNOTS=np.array([0, 10, 20]), SEEDS=2, COMPARED=2)
    small |= dict(RATES=np.float32([1e-3, 1e-2, 0.1]), FIRST_RATE=0.02)
    for name, value in small.items():
        monkeypatch.setattr(meta, name, value)

    out = run(meta, "--steps 10", tmp_path, monkeypatch, capsys)
    first, _ = numbers(r"loss (\S+) at first", out)
    _, one, _, knots = numbers(r"validation loss (\S+) \(", out)
    assert max(one, knots) < 0.8 * first
    (rate,) = numbers(r"learnt constant \[(\S+)\]", out)
    assert 0.03 < rate < 0.3
    assert (tmp_path / "meta_learning_rate.png").stat().st_size > 10_000


def test_meta_learning_rate_knots_and_slope(monkeypatch):
    """The schedule is NumPy's interpolation, and the slope that of finite differences."""
    meta = example("meta_learning_rate")
    rates, count = np.float32([0.02, 0.1, 0.3, 0.2, 0.05, 0.01]), np.arange(meta.STEPS + 5)
    wanted = np.exp(np.interp(count, meta.KNOTS, np.log(rates)))
    np.testing.assert_allclose(meta.knotted(rates)(count), wanted, rtol=1e-5)

    monkeypatch.setattr(meta, "STEPS", 12)
    monkeypatch.setattr(meta, "KNOTS", np.array([0, 6, 12]))

    @jax.jit
    @jax.value_and_grad
    def loss(middle):
        rates = jnp.exp(jnp.stack([jnp.float32(-3.0), middle, jnp.float32(-4.0)]))
        return meta.run_fn(jax.random.key(0), meta.knotted, rates)["validation"]

    numeric = (loss(-1.9)[0] - loss(-2.1)[0]) / 0.2
    np.testing.assert_allclose(loss(-2.0)[1], numeric, rtol=0.02)


# --- double_descent


def test_double_descent(tmp_path, monkeypatch, capsys):
    descent = example("double_descent")
    monkeypatch.setattr(descent, "EXAMPLES", 60)
    flags = "--widths 2 32 --seeds 2 --steps 200"
    out = run(descent, flags, tmp_path, monkeypatch, capsys)
    assert "4 runs of 200 steps" in out
    rows = numbers(r"\u2502 (?:2|32) +\u2502 (\S+)", out.replace(",", ""))
    assert rows == [75 * width + 10 for width in (2, 32)]
    (train, test), (wide_train, wide_test) = np.reshape(numbers(r"(\S+)%", out), (2, 2))
    assert wide_train < 5 < 40 < train  # 32 units fit the labels, two cannot
    assert wide_test < test - 10 and wide_test > 10  # and the noise costs something
    assert (tmp_path / "double_descent.png").stat().st_size > 10_000


def test_double_descent_threshold_and_noise():
    """A width of 53.2 has 4,000 parameters; of ten random labels one is right by chance."""
    descent = example("double_descent")
    np.testing.assert_allclose(75 * descent.THRESHOLD + 10, 400 * 10)
    images = np.asarray(descent.train["image"]).reshape(len(descent.train["label"]), -1)
    labels = {
        image.tobytes(): label for image, label in zip(images, descent.train["label"], strict=True)
    }
    for noise in (0.0, 0.2, 1.0):
        data = descent.noisy(jax.random.key(0), noise)
        rows = np.asarray(data["image"]).reshape(400, -1)
        right = np.array([labels[image.tobytes()] for image in rows])
        assert len({image.tobytes() for image in rows}) == 400
        np.testing.assert_allclose(np.mean(right != data["label"]), 0.9 * noise, atol=0.06)


# --- monitoring


def test_monitoring(tmp_path, monkeypatch, capsys):
    monitoring = example("monitoring")
    monkeypatch.setattr(monitoring, "WINDOW", 5)
    net = fnn.serial(fnn.flatten(3), fnn.dense(32), jax.nn.relu, fnn.dense(10))
    monkeypatch.setattr(monitoring, "net", net)
    out = run(monitoring, "--data digits --epochs 5 --batches 20", tmp_path, monkeypatch, capsys)
    before, after = numbers(r"(\S+)% at (?:first|the end)", out)
    assert before > 80 > after
    assert len(numbers(r"of the (?:in|out)puts above 0.25: at batch (\d+),", out)) == 2
    assert (tmp_path / "monitoring.png").stat().st_size > 10_000


def test_monitoring_turns_as_scipy_does():
    import scipy.ndimage

    image = np.random.default_rng(0).random((1, 9, 9, 1)).astype("float32")
    got = example("monitoring").turned(asarray(image), 30.0)[0, 2:7, 2:7, 0]
    want = scipy.ndimage.rotate(image[0, :, :, 0], -30.0, reshape=False, order=1)[2:7, 2:7]
    np.testing.assert_allclose(got, want, atol=1e-5)
