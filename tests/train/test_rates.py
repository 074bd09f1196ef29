"""Rates by layer and by path, rates among the metrics, schedules everywhere; statistics anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fnn
from fnn import optim
from tests.optim.rows import run

# --- partition by patterns


def test_partition_by_patterns_takes_the_first_that_matches():
    tx = optim.partition(
        {"head/bias": optim.sgd(3.0), "head/*": optim.sgd(2.0), "*": optim.sgd(1.0)}
    )
    g = {
        "head": {"kernel": jnp.ones(2), "bias": jnp.ones(1)},
        "body": {"kernel": jnp.ones(2), "bias": jnp.ones(1)},
    }
    updates, _ = tx.update(g, tx.init(g))
    assert jax.tree.map(lambda u: float(-u[0]), updates) == {
        "head": {"kernel": 2.0, "bias": 3.0},
        "body": {"kernel": 1.0, "bias": 1.0},
    }


def test_partition_by_patterns_is_partition_by_labels():
    g = {"a": jnp.asarray([1.0, 2.0]), "b": {"c": jnp.asarray(3.0)}}
    transforms = optim.adam(0.1), optim.sgd(0.2, momentum=0.5)
    by_pattern = optim.partition(dict(zip(("b/*", "*"), transforms, strict=True)))
    by_label = optim.partition(dict(zip(("x", "y"), transforms, strict=True)), {"a": "y", "b": "x"})
    states = by_pattern.init(g), by_label.init(g)
    for _ in range(3):
        first, one = by_pattern.update(g, states[0], g)
        second, two = by_label.update(g, states[1], g)
        states = one, two
        jax.tree.map(assert_array_equal, first, second)


def test_partition_by_patterns_refuses():
    g = {"head": {"kernel": jnp.ones(2)}, "body": {"kernel": jnp.ones(2)}}
    with pytest.raises(fnn.FnnError, match="none for body/kernel"):
        optim.partition({"head/*": optim.sgd(1.0)}).init(g)
    with pytest.raises(fnn.FnnError, match="tail"):
        optim.partition({"tail/*": optim.sgd(1.0), "*": optim.sgd(1.0)}).init(g)
    with pytest.raises(fnn.FnnError, match="patterns of paths as keys, or labels"):
        optim.partition({1: optim.sgd(1.0)})


# --- rates that fall with depth


def test_layerwise_decay_of_a_stack_is_that_of_its_layers():
    """A stack in one leaf moves as its layers do alone; decay of weights falls with the rate."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    alone = {f"l{i}": {"w": w[i]} for i in range(5)}
    stacked = {"stem": w[0], "blocks": {"w": w[1:4]}, "head": {"w": w[4]}}
    base = optim.adamw(0.1, weight_decay=0.5)
    one = optim.chain(base, optim.layerwise_decay(0.7, [f"l{i}/*" for i in range(5)]))
    many = optim.chain(base, optim.layerwise_decay(0.7, ["stem", ("blocks/*", 3), "head/*"]))
    plain, _ = base.update(alone, base.init(alone), alone)
    got, _ = one.update(alone, one.init(alone), alone)
    for i in range(5):
        assert_allclose(got[f"l{i}"]["w"], 0.7 ** (4 - i) * plain[f"l{i}"]["w"], rtol=1e-6)
    other, _ = many.update(stacked, many.init(stacked), stacked)
    together = [other["stem"], *other["blocks"]["w"], other["head"]["w"]]
    for i in range(5):
        assert_allclose(together[i], got[f"l{i}"]["w"], rtol=1e-6)


def test_layerwise_decay_may_be_traced_and_keeps_dtypes():
    g = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.complex64)}

    def updates(decay):
        tx = optim.layerwise_decay(decay, ["a", "b"])
        return tx.update(g, tx.init(g))[0]

    got = jax.jit(updates)(0.5)
    assert got["a"].dtype == jnp.bfloat16
    assert got["a"][0] == 0.5
    assert got["b"][0] == 1


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ("a", "a list of patterns"),
        ([], "a list of patterns"),
        ([("a", 2, 3)], "a list of patterns"),
        (["a", "a"], "differ"),
        (["a"], "none for b"),
        ([("a", 3), "b"], r"a stack of 3 layers"),
        (["a", "b", "c"], "c"),
    ],
)
def test_layerwise_decay_refuses(layers, match):
    g = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(fnn.FnnError, match=match):
        tx = optim.layerwise_decay(0.5, layers)
        tx.update(g, tx.init(g))


# --- schedules


RATED = ["adam", "fromage", "lars", "optimistic_adam", "prodigy", "rprop", "schedule_free_adamw",
         "sm3", "signum", "novograd", "noisy_sgd"]  # fmt: skip


@pytest.mark.parametrize("name", RATED)
def test_a_constant_schedule_is_a_number(name):
    rng = np.random.default_rng(0)
    grads = {"w": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)}
    keyed = {"key": jax.random.key(0)} if name == "noisy_sgd" else {}
    p = {"w": jnp.ones(3)}
    build = getattr(optim, name)
    want = run(build(0.1, **keyed), grads, p)["w"]
    got = run(build(lambda count: jnp.float32(0.1), **keyed), grads, p)["w"]
    assert_allclose(got, want, rtol=1e-5)


def test_rprop_by_schedule():
    """Steps grow as they do without, and the schedule scales them; bounds are of the whole step."""
    tx = optim.rprop(lambda count: jnp.array([0.0, 1.0, 2.0, 0.5, 0.5])[count], max_step_size=2.0)
    grads = {"w": jnp.asarray([[1.0], [1.0], [1.0], [1.0], [-1.0]])}
    got = run(tx, grads, {"w": jnp.zeros(1)})["w"][:, 0]
    # e = 1, 1.2, then 1.44 x 2 is cut to 2, e = 1 x 1.2 = 1.2, a turn
    assert_allclose(got, [0.0, -1.2, -2.0, -0.6, 0.0], rtol=1e-6)


def test_one_cycle_between_counts():
    """A peak at 2.5 is reached by no count, as documented; optax's is at 2, and PyTorch's at 1.5.

    So the value depends smoothly on pct_start, and may be differentiated by it."""

    def cycle(pct_start):
        return optim.schedules.one_cycle(10, 1.0, pct_start, div_factor=2.0, kind="linear")

    values = np.asarray(cycle(0.25)(jnp.arange(11)))
    assert_allclose(values[:3], [0.5, 0.7, 0.9], rtol=1e-6)
    assert values.max() < 1
    assert optim.schedules.one_cycle(10, 1.0, 0.3)(3) == 1
    slope = jax.grad(lambda pct_start: cycle(pct_start)(1))
    assert_allclose(slope(0.25), -0.5 / (0.25**2 * 10), rtol=1e-5)


def test_optimizers_rely_on_no_implicit_ranks():
    """With leaves of every rank in one tree; simplex divided rows by a vector."""
    p = {"a": jnp.ones(3), "b": jnp.ones((2, 3)), "c": jnp.ones(()), "d": jnp.ones((2, 2, 3))}
    simplex = optim.chain(optim.sgd(0.1), optim.project(optim.constraints.simplex()))
    with jax.numpy_rank_promotion("raise"):
        for tx in (simplex, optim.adafactor(0.1, 2), optim.fromage(0.1), optim.lamb(0.1)):
            tx.update(p, tx.init(p), p)


# --- among the metrics


def test_the_rate_and_the_norm_of_the_gradient_among_the_metrics():
    schedule = optim.schedules.linear(1.0, 0.0, 4)
    tx = optim.sgd(schedule)

    def loss_fn(params, state, batch, key):
        return jnp.sum(params * batch), (state, {"own": batch[0]})

    params = jnp.zeros(2)
    ts = fnn.train.TrainState(jnp.int32(0), params, {}, tx.init(params), jax.random.key(0))
    step = fnn.train.step(loss_fn, tx, learning_rate=schedule, grad_norm=True)
    for i in range(3):
        ts, metrics = step(ts, jnp.asarray([3.0, 4.0]))
        assert metrics["learning_rate"] == 1 - i / 4
        assert metrics["grad_norm"] == 5
    assert sorted(metrics) == ["grad_norm", "learning_rate", "loss", "own"]
    clash = fnn.train.step(
        lambda p, s, b, k: (jnp.sum(p), (s, {"grad_norm": b[0]})), tx, grad_norm=True
    )
    with pytest.raises(fnn.FnnError, match="metrics without grad_norm"):
        clash(ts, jnp.ones(2))


# --- batch statistics anew


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_refreshed_statistics_are_means_of_the_batches(momentum):
    rng = np.random.default_rng(0)
    net = fnn.serial(fnn.dense(3), fnn.batch_norm(momentum=momentum), fnn.dropout(0.5))
    params, state = net.init(jax.random.key(0), (1, 4))
    batches = [np.float32(rng.normal(2.0, 1.0, size=(n, 4))) for n in (8, 8, 5)]
    state = jax.tree.map(lambda a: a + 7, state)  # of other params
    fresh = fnn.train.refresh_statistics(net, params, state, batches, key=jax.random.key(1))
    kernel, bias = (np.float64(params["dense1"][k]) for k in ("kernel", "bias"))
    hidden = [np.float64(x) @ kernel + bias for x in batches]
    sizes = [len(h) for h in hidden]
    got = fresh["batch_norm1"]
    assert_allclose(got["mean"], np.average([h.mean(0) for h in hidden], 0, sizes), rtol=2e-5)
    assert_allclose(got["var"], np.average([h.var(0) for h in hidden], 0, sizes), rtol=2e-5)


def test_refreshing_leaves_the_rest_and_takes_batches_as_they_come():
    net = fnn.batch_norm()
    params, state = net.init(jax.random.key(0), (1, 1))
    x = jnp.array([[1.0], [3.0]])
    for batch in (x, (x, jnp.zeros(2)), {"image": x, "label": jnp.zeros(2)}):
        fresh = fnn.train.refresh_statistics(net, params, state, iter([batch]))
        assert_allclose(fresh["mean"], [2.0], rtol=1e-6)
    still = fnn.batch_norm(momentum=1.0)
    kept = fnn.train.refresh_statistics(still, params, state, [x])
    jax.tree.map(assert_array_equal, kept, state)
    assert fnn.train.refresh_statistics(fnn.dense(2), fnn.dense(2).init(jax.random.key(0), x)[0],
                                        {}, [x]) == {}  # fmt: skip
    with pytest.raises(fnn.FnnError, match="one batch"):
        fnn.train.refresh_statistics(net, params, state, [])
    with pytest.raises(fnn.FnnError, match="state like declared"):
        fnn.train.refresh_statistics(net, params, {}, [x])
