"""The smallest programs of the gallery: what they print is what they are there to show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

import fnn
from tests.gallery.support import example, fewer, numbers, run
from tests.support import asarray


def test_xor(tmp_path, monkeypatch, capsys):
    xor = example("xor")
    monkeypatch.setattr(xor, "WIDTHS", (2, 4))
    monkeypatch.setattr(xor, "SEEDS", 8)
    out = run(xor, "", tmp_path, monkeypatch, capsys)
    rows = np.array(numbers(r"  [01]  [01]   [01]\s+(\S+)", out))
    np.testing.assert_allclose(rows, xor.Y[:, 0], atol=0.1)
    assert numbers(r"apart by (\S+) of", out)[0] < 1e-4
    assert numbers(r"4 hidden units: (\S+)%", out) == [100]
    assert (tmp_path / "xor.png").stat().st_size > 10_000


def test_distributed_in_one_process(tmp_path, monkeypatch, capsys):
    distributed = example("distributed")
    fewer(monkeypatch, train=64, test=16)
    monkeypatch.setattr(distributed, "net", fnn.serial(fnn.flatten(3), fnn.dense(10)))
    out = run(distributed, "--epochs 1", tmp_path, monkeypatch, capsys)
    assert "1 processes, 8 devices" in out and "ended at step 1: 1 epochs" in out
    again = run(distributed, "--epochs 2", tmp_path, monkeypatch, capsys)  # goes on
    assert "step        2" in again and "step        1 " not in again
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 4


def test_the_gradient_by_hand_is_the_derivative(monkeypatch):
    """One step by hand against autodiff of the loss."""
    xor = example("xor")
    monkeypatch.setattr(xor, "STEPS", 1)
    net = xor.network(4)
    params, _ = net.init(jax.random.key(3), xor.X)
    slope = jax.grad(lambda p: jnp.mean((net(p, xor.X) - xor.Y) ** 2))(params)
    moved = jax.tree.map(
        lambda a, b: (a - b) / xor.LEARNING_RATE, params, xor.train_by_hand(params)
    )
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_gradients(tmp_path, monkeypatch, capsys):
    gradients = example("gradients")
    monkeypatch.setattr(gradients, "SEEDS", 2)
    out = run(gradients, "", tmp_path, monkeypatch, capsys)
    table = {
        line[:20].strip(): [float(word) for word in line[20:].split()]
        for line in out.splitlines()[2:-1]
    }
    sigmoid, tanh, relu = table["scale too small"]
    assert sigmoid < 1e-12 and tanh < 1e-2 and relu < 1e-2
    assert table["scale too large"][2] > 100
    assert all(0.2 < ratio < 5 for ratio in table["residual, layer norm"])
    assert (tmp_path / "gradients.png").stat().st_size > 10_000


@pytest.mark.full
def test_graph(tmp_path, monkeypatch, capsys):
    graph = example("graph")
    monkeypatch.setattr(graph, "DRAWS", 2)
    x, label = graph.load()
    monkeypatch.setattr(graph, "load", lambda: (x[:400], label[:400]))
    monkeypatch.setattr(graph, "HOPS", 2)
    out = run(graph, "--steps 40", tmp_path, monkeypatch, capsys)
    edges, alone, spread = numbers(r"(\S+)%  \(", out)
    assert edges > alone > 30 and spread > 60
    assert (tmp_path / "graph.png").stat().st_size > 10_000


def test_a_graph_convolution_is_a_product_with_the_adjacency_matrix(monkeypatch):
    graph = example("graph")
    monkeypatch.setattr(graph, "HOPS", 2)
    monkeypatch.setattr(graph, "NEIGHBOURS", 2)
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    edges = graph.neighbours(x)
    layer = graph.graph_conv(4)
    params, _ = layer.init(jax.random.key(0), x, edges)
    matrix = np.zeros((7, 7))
    np.add.at(matrix, (edges["to"], edges["from"]), edges["weight"])
    near = np.argsort(((x[:, None] - x) ** 2).sum(-1), axis=1)[:, :3]
    joined = np.array([[j in near[i] or i in near[j] for j in range(7)] for i in range(7)])
    root = np.sqrt(joined.sum(1))
    np.testing.assert_allclose(matrix, joined / root / root[:, None], rtol=1e-6)
    dense = fnn.tree.select(params, "*kernel")["dense/kernel"]
    np.testing.assert_allclose(layer(params, x, edges), matrix @ matrix @ (x @ dense), atol=1e-5)


@pytest.mark.full
def test_maml(tmp_path, monkeypatch, capsys):
    maml = example("maml")
    monkeypatch.setattr(maml, "TEST_TASKS", 50)
    out = run(maml, "--steps 400", tmp_path, monkeypatch, capsys)
    (first, after), (_, others) = (
        numbers(r"(\S+) after [01],", line) for line in out.splitlines()[:2]
    )
    assert after < 0.9 * first and after < others
    assert (tmp_path / "maml.png").stat().st_size > 10_000


def test_the_meta_gradient_goes_through_the_inner_step():
    """Against differences, in float64: without it, learning to learn is ordinary training."""
    maml, key = example("maml"), jax.random.key(0)
    with jax.enable_x64(True):
        params, _ = maml.net.init(key, (maml.POINTS, 1))
        params = jax.tree.map(lambda a: a.astype(float), params)
        wave = asarray([2.0]), asarray([1.0])
        along = jax.tree.map(lambda a: np.random.default_rng(0).normal(size=a.shape), params)

        def at(h):
            return maml.error_after(
                jax.tree.map(lambda p, d: p + h * d, params, along), 1, key, wave
            )

        np.testing.assert_allclose(jax.grad(at)(0.0), (at(1e-6) - at(-1e-6)) / 2e-6, rtol=1e-5)


def test_mlp_digits_and_cnn_sgd(tmp_path, monkeypatch, capsys):
    for name, epochs in (("mlp_digits", 3), ("cnn_sgd", 1)):
        out = run(example(name), f"--data digits --epochs {epochs}", tmp_path, monkeypatch, capsys)
        (accuracy,) = numbers(r"test accuracy (\S+)%", out)
        assert accuracy > {"mlp_digits": 80, "cnn_sgd": 15}[name]
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_binary_table(tmp_path, monkeypatch, capsys):
    table = example("binary_table")
    monkeypatch.setattr(table, "EPOCHS", 15)
    seen = []
    measure = table.measure
    monkeypatch.setattr(table, "measure", lambda *args: (seen.append(args), measure(*args))[1])
    out = run(table, "--splits 1", tmp_path, monkeypatch, capsys)
    rows = {line[:22].strip(): line[22:].split() for line in out.splitlines()[-4:-1]}
    for values in rows.values():
        accuracy, *_, area, loss = map(float, values)
        assert accuracy > 0.85 and area > 0.95 and loss < 0.4
    # The network's row, by scikit-learn.
    _, logits, labels = seen[0]
    oracles = (
        lambda: metrics.accuracy_score(labels, logits > 0),
        lambda: metrics.recall_score(labels, logits > 0),
        lambda: metrics.precision_score(labels, logits > 0),
        lambda: metrics.f1_score(labels, logits > 0),
        lambda: metrics.roc_auc_score(labels, logits),
        lambda: metrics.log_loss(labels, 1 / (1 + np.exp(-np.float64(logits)))),
    )
    wanted = [oracle() for oracle in oracles]
    np.testing.assert_allclose([float(v) for v in rows["network"]], wanted, atol=2e-3)
    assert (tmp_path / "binary_table.png").stat().st_size > 10_000


@pytest.mark.full
def test_overfitting(tmp_path, monkeypatch, capsys):
    overfitting = example("overfitting")
    few = {"nothing": [0.0], "dropout": [0.5], "augmentation": [1.0], "more data": [0.0]}
    for name, value in dict(REMEDIES=few, STEPS=160, FEATURES=64, LEARNING_RATE=4e-3).items():
        monkeypatch.setattr(overfitting, name, value)
    out = run(overfitting, "--seeds 1", tmp_path, monkeypatch, capsys)
    table = {line[:20].strip(): line[20:].split()[-2:] for line in out.splitlines()[2:-1]}
    (train, test), (_, more) = (map(float, table[name]) for name in ("nothing", "more data"))
    assert train < 2 and test > 20 and more < test - 5
    assert table.keys() == {*few, "early stopping"}
    assert (tmp_path / "overfitting.png").stat().st_size > 10_000


@pytest.mark.full
def test_autoencoder(tmp_path, monkeypatch, capsys):
    autoencoder = example("autoencoder")
    for name, value in dict(FROZEN_STEPS=60, TUNING_STEPS=40, BATCH_SIZE=16).items():
        monkeypatch.setattr(autoencoder, name, value)
    fewer(monkeypatch, 1000, 200)
    out = run(autoencoder, "--seeds 2 --steps 150", tmp_path, monkeypatch, capsys)
    frozen, tuned, alone, gain = numbers(r"(\S+) ± \S+% wrong", out)
    assert tuned < frozen < 80 and abs(alone - tuned - gain) < 0.11
    assert (tmp_path / "autoencoder.png").stat().st_size > 10_000


def test_the_intervals_of_the_autoencoder_are_scipys():
    values = np.random.default_rng(0).normal(size=7)
    mean, half = example("autoencoder").interval(values)
    low, high = scipy.stats.t.interval(0.95, 6, np.mean(values), scipy.stats.sem(values))
    np.testing.assert_allclose([mean - half, mean + half], [low, high])


def test_the_frozen_encoder_of_the_autoencoder_stays(monkeypatch):
    """After the first stage the encoder's params are bitwise those of the pre-training."""
    autoencoder = example("autoencoder")
    monkeypatch.setattr(autoencoder, "FROZEN_STEPS", 20)
    monkeypatch.setattr(autoencoder, "TUNING_STEPS", 0)
    seen = []
    merge = fnn.merge
    monkeypatch.setattr(fnn, "merge", lambda *args: (seen.append(merge(*args)), merge(*args))[1])
    digits = fnn.data.load("mnist_5k", "test", floats=True)
    few = autoencoder.labelled(digits, jax.random.key(0))
    encoder, _ = autoencoder.encoder.init(jax.random.key(1), few["image"][:1])
    autoencoder.fine_tune(jax.random.key(2), few, few, encoder)
    ((params, _),) = seen
    for a, b in zip(*map(jax.tree.leaves, (params["encoder"], encoder)), strict=True):
        np.testing.assert_array_equal(a, b)
