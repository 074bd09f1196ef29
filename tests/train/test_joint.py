"""Games: their moves against NumPy and closed forms; and each player has what a step promises."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn import errors, train
from tests.support import refused
from tests.train.support import assert_same_bits

sgd = fnn.optim.sgd


def fold(key, *numbers):
    return functools.reduce(jax.random.fold_in, numbers, key)


def player(params, tx, state=None, seed=0):
    params = jax.tree.map(jnp.asarray, params)
    return train.TrainState(
        jnp.int32(0), params, {} if state is None else state, tx.init(params), jax.random.key(seed)
    )


# --- what the moves are


def bilinear(order, names, rate=0.1):
    """min over x, max over y of x y: the step and the first state."""
    losses = {
        "x": lambda p, s, batch, key: (p["x"] * p["y"], (s, {})),
        "y": lambda p, s, batch, key: (-p["x"] * p["y"], (s, {})),
    }
    tx = sgd(rate)
    step = train.joint_step({n: losses[n] for n in names}, {"x": tx, "y": tx}, order=order)
    return step, train.join(x=player(np.float32(1), tx), y=player(np.float32(0.5), tx))


def trajectory(step, ts, steps):
    def one(ts, _):
        ts, metrics = step(ts, None)
        return ts, (ts.params["x"], ts.params["y"], metrics["x/loss"])

    return (np.float64(a) for a in jax.jit(lambda ts: jax.lax.scan(one, ts, length=steps))(ts)[1])


def test_simultaneous_descent_and_ascent_spiral_outwards_as_the_closed_form_says():
    x, y, losses = trajectory(*bilinear("simultaneous", "xy"), 60)
    z = (1 + 0.5j) * (1 + 0.1j) ** np.arange(61)  # (x, y) -> (x - r y, y + r x)
    np.testing.assert_allclose(x + 1j * y, z[1:], rtol=1e-5)
    np.testing.assert_allclose(losses, (z.real * z.imag)[:-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", ["xy", "yx"])
def test_alternating_players_stay_on_an_ellipse_and_move_in_the_order_of_the_losses(names):
    x, y, losses = trajectory(*bilinear("alternating", names), 60)
    sign = 1 if names == "xy" else -1
    np.testing.assert_allclose(x**2 + y**2 - sign * 0.1 * x * y, 1.25 - sign * 0.05, rtol=1e-5)
    first = (1 - 0.1 * 0.5, 0.5 + 0.1 * 0.95) if names == "xy" else (1 - 0.1 * 0.6, 0.6)
    np.testing.assert_allclose((x[0], y[0]), first, rtol=1e-6)
    seen = 0.5 if names == "xy" else 0.6  # the loss of x is at the params that x saw
    np.testing.assert_allclose(losses[0], seen, rtol=1e-6)


@pytest.mark.parametrize("order", ["alternating", "simultaneous"])
def test_a_game_of_quadratics_is_numpys(order):
    """L_u = u A u / 2 + u B v + d u, L_v = v C v / 2 - u B v, by momentum; d is the batch."""
    rng = np.random.default_rng(0)
    a, c = (m @ m.T / 3 for m in rng.normal(size=(2, 3, 3)).astype(np.float32))
    b, first = (rng.normal(size=s).astype(np.float32) for s in ((3, 3), (2, 3)))
    data = rng.normal(size=(8, 3)).astype(np.float32)

    def u_loss(p, state, d, key):
        u, v = p["u"]["at"], p["v"]
        return u @ a @ u / 2 + u @ b @ v + d @ u, (state, {"d": d[0]})

    def v_loss(p, state, d, key):
        u, v = p["u"]["at"], p["v"]
        return v @ c @ v / 2 - u @ b @ v, (state, {})

    txs = {"u": sgd(0.05, momentum=0.9), "v": sgd(0.1)}
    step = train.joint_step({"u": u_loss, "v": v_loss}, txs, order=order, grad_norm=True)
    ts = train.join(u=player({"at": first[0]}, txs["u"]), v=player(first[1], txs["v"]))
    ts, metrics = jax.jit(lambda ts: jax.lax.scan(step, ts, data))(ts)

    u, v, m, norms = *np.float64(first), np.zeros(3), []
    for d in np.float64(data):
        before = u
        gradient = a @ u + b @ v + d
        m = 0.9 * m + gradient
        u = u - 0.05 * m
        v = v - 0.1 * (c @ v - (u if order == "alternating" else before) @ b)
        norms.append(np.linalg.norm(gradient))
    np.testing.assert_allclose(ts.params["u"]["at"], u, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ts.params["v"], v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["u/grad_norm"], norms, rtol=1e-4)
    np.testing.assert_array_equal(metrics["u/d"], data[:, 0])
    assert sorted(metrics) == ["u/d", "u/grad_norm", "u/loss", "v/grad_norm", "v/loss"]
    assert int(ts.step) == 8


# --- a small GAN


CRITIC = fnn.serial(fnn.dense(8), jnp.tanh, fnn.dropout(0.2), fnn.dense(1))
GENERATOR = fnn.serial(fnn.dense(8), jnp.tanh, fnn.dense(3))
DATA = {"x": np.random.default_rng(1).normal(size=(26, 3)).astype(np.float32)}


def scores(params, x, key):
    noise, dropped = jax.random.split(key)
    fake = GENERATOR(params["generator"], jax.random.normal(noise, (len(x), 2)))

    def score(x):
        return CRITIC.apply(params["critic"], {}, x, key=dropped, train=True)[0][:, 0]

    def slope(x):
        return jax.grad(lambda x: CRITIC(params["critic"], x)[0])(x)

    steep = jnp.sum(jax.vmap(slope)(x) ** 2, axis=-1)
    return score(x), score(fake), steep


def critic_loss(params, state, batch, key):
    real, fake, steep = scores(params, batch["x"], key)
    loss = jnp.mean(fake) - jnp.mean(real) + fnn.losses.mean((jnp.sqrt(steep) - 1) ** 2).value
    return loss, (state, {"first": batch["x"][0, 0], "fake": fnn.losses.mean(fake)})


def generator_loss(params, state, batch, key):
    return -fnn.losses.mean(scores(params, batch["x"], key)[1]), (state, {})


LOSSES = {"critic": critic_loss, "generator": generator_loss}
TXS = {"critic": fnn.optim.adam(1e-2, b1=0.5), "generator": fnn.optim.adam(2e-2)}
STEP = train.joint_step(LOSSES, TXS, repeats={"critic": 4, "generator": 2})
HOW = dict(batch_size=8, progress=False)


def start(key=None, txs=TXS):
    a, b = jax.random.split(jax.random.key(0) if key is None else key)
    return train.join(
        critic=train.init(CRITIC, txs["critic"], a, (1, 3)),
        generator=train.init(GENERATOR, txs["generator"], b, (1, 2)),
    )


def test_repeated_moves_are_a_loop_with_optax():
    ts = start()
    txs = {"critic": optax.adam(1e-2, b1=0.5), "generator": optax.adam(2e-2)}
    params, states = dict(ts.params), {name: tx.init(ts.params[name]) for name, tx in txs.items()}
    pairs = {
        name: jax.jit(jax.value_and_grad(
            lambda own, params, x, key, name=name: fnn.losses.means.values(
                LOSSES[name]({**params, name: own}, {}, {"x": x}, key)[0]
            )
        ))
        for name in txs
    }  # fmt: skip
    for step in range(2):
        batch = DATA["x"][8 * step :][:8]
        ts, metrics = STEP(ts, {"x": batch})
        with jax.numpy_dtype_promotion("standard"):  # which optax needs
            for name, count in (("critic", 4), ("generator", 2)):
                for i in range(count):
                    key = fold(start().key, step, zlib.crc32(name.encode()), i)
                    part = batch[2 * i : 2 * i + 2]
                    loss, grads = pairs[name](params[name], params, part, key)
                    updates, states[name] = txs[name].update(grads, states[name])
                    params[name] = optax.apply_updates(params[name], updates)
                np.testing.assert_allclose(metrics[f"{name}/loss"], loss, rtol=1e-4, atol=1e-6)
        assert metrics["critic/first"] == batch[6, 0]  # of the last move
    assert sorted(metrics) == ["critic/fake", "critic/first", "critic/loss", "generator/loss"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ts.params, params
    )
    assert int(ts.step) == 2 and int(ts.opt_state["critic"][0].count) == 8


def test_fit_and_run_take_the_same_steps_bitwise_and_go_on():
    whole, history = train.fit(STEP, start(), DATA, epochs=2, **HOW)
    run = jax.jit(lambda ts: train.run(STEP, ts, DATA, steps=6, batch_size=8))
    ts, columns = run(start())
    assert_same_bits(ts, whole)
    assert_same_bits(columns["train"], history["train"])
    half, _ = train.fit(STEP, start(), DATA, epochs=1, **HOW)
    assert_same_bits(train.fit(STEP, half, DATA, epochs=1, **HOW)[0], whole)


def test_a_run_that_a_keeper_resumes_is_the_whole_run(tmp_path):
    whole, history = train.fit(STEP, start(), DATA, epochs=2, **HOW)
    for epochs in (1, 2):
        keeper = fnn.checkpoint.Keeper(tmp_path / "run")
        options = dict(epochs=epochs, callbacks=[keeper], resume=keeper, **HOW)
        ts, again = train.fit(STEP, start(), DATA, **options)
    assert_same_bits(ts, whole)
    assert_same_bits(again["train"], history["train"])


def test_runs_are_swept_over_the_rate_of_one_player():
    """x y - x^2 / 2 + d x is the gain of x, and x y the loss of y; d is the data."""

    def run(key, rate):
        losses = {
            "x": lambda p, s, d, key: (p["x"] * (p["x"] / 2 - p["y"] - d.mean()), (s, {})),
            "y": lambda p, s, d, key: (p["x"] * p["y"], (s, {})),
        }
        txs = {"x": sgd(0.1), "y": sgd(rate)}
        ts = train.join(x=player(1.0, txs["x"]), y=player(jax.random.normal(key), txs["y"]))
        step = train.joint_step(losses, txs, repeats={"x": 2})
        ts, _ = train.run(step, ts, np.full((4,), 0.5, np.float32), steps=5, batch_size=2)
        return ts.params

    keys, rates = jax.random.split(jax.random.key(3), 2), np.float32([0.0, 0.01, 0.3])
    found = fnn.search.sweep(run, {"rate": rates}, keys=keys, progress=False)
    x, y = np.ones((3, 2)), np.tile([float(jax.random.normal(key)) for key in keys], (3, 1))
    for _ in range(5):
        for _ in range(2):
            x = x - 0.1 * (x - y - 0.5)
        y = y - rates[:, None] * x
    np.testing.assert_allclose(found.grid(found.results)["x"], x, rtol=1e-5)
    np.testing.assert_allclose(found.grid(found.results)["y"], y, rtol=1e-5)


def test_stacked_states_are_games_side_by_side():
    def noisy(sign):
        def loss_fn(params, state, batch, key):
            return sign * params["x"] * params["y"] + params["x"] * jax.random.normal(key), (
                state,
                {},
            )

        return loss_fn

    txs = {"x": TXS["critic"], "y": sgd(0.1)}
    step = train.joint_step({"x": noisy(1), "y": noisy(-1)}, txs, repeats={"y": 2})

    def first(key):
        ts = train.join(**{name: player(np.float32(0.5), tx) for name, tx in txs.items()})
        return ts._replace(key=key)

    keys = jax.random.split(jax.random.key(4), 3)
    batch = np.zeros(2, np.float32)
    many, metrics = jax.jit(jax.vmap(step, (0, None)))(jax.vmap(first)(keys), batch)
    alone, own = step(first(keys[2]), batch)
    np.testing.assert_allclose(metrics["x/loss"][2], own["x/loss"], rtol=1e-5)
    assert len(set(np.asarray(metrics["x/loss"]))) == 3
    lane = jax.tree.map(lambda a: a[2], many.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), lane, alone.params)


def test_a_donating_step_uses_the_state_up():
    donating = train.joint_step(LOSSES, TXS, repeats={"critic": 4, "generator": 2}, donate=True)
    ts, batch = start(), {"x": DATA["x"][:8]}
    wanted, _ = STEP(ts, batch)
    assert_same_bits(donating(ts, batch)[0], wanted)
    with pytest.raises(errors.InputError, match="used up"):
        donating(ts, batch)


# --- state, frozen params, what optimizers get


def counting(name):
    """A loss that adds 1 to the counts of both players, and 10 to its own."""

    def loss_fn(params, state, batch, key):
        state = {n: count + 1 + 9 * (n == name) for n, count in state.items()}
        return params[name] * batch, (state, {"seen": state[name]})

    return loss_fn


@pytest.mark.parametrize("order", ["alternating", "simultaneous"])
def test_the_state_passes_from_loss_to_loss_and_a_skipped_move_leaves_it(order):
    txs = {"a": fnn.optim.skip_nonfinite(sgd(0.1)), "b": sgd(0.1)}
    losses = {name: counting(name) for name in txs}
    del_nan = losses["a"]
    losses["a"] = lambda p, s, batch, key: del_nan(p, s, jnp.where(batch > 5, jnp.nan, batch), key)
    step = train.joint_step(losses, txs, order=order)
    first = train.join(**{n: player(np.float32(1), tx, jnp.int32(0)) for n, tx in txs.items()})
    ts, metrics = step(first, np.float32(2))
    assert ts.state == {"a": 11, "b": 11} and metrics["b/seen"] == 11
    again, _ = step(ts, np.float32(6))
    assert again.state == {"a": 12, "b": 21} and int(again.step) == 2
    assert again.params["a"] == ts.params["a"]
    np.testing.assert_allclose(again.params["b"], 1 - 0.2 - 0.6, rtol=1e-6)
    assert int(again.opt_state["a"].total_notfinite) == 1


def test_frozen_params_stay_and_a_network_that_is_no_player_too():
    net = fnn.serial(low=fnn.frozen(fnn.dense(4)), head=fnn.dense(1))
    tx = sgd(0.1)
    ts = train.join(
        net=train.init(net, tx, jax.random.key(0), (1, 3)), other=player(np.float32(2), tx)
    )

    def loss_fn(params, state, batch, key):
        y, own = net.apply(params["net"], state["net"], batch, key=key, train=True)
        return params["other"] * jnp.mean(y**2), ({**state, "net": own}, {})

    new, _ = train.joint_step({"net": loss_fn}, {"net": tx})(ts, DATA["x"])
    assert_same_bits((new.state, new.params["other"]), (ts.state, ts.params["other"]))
    assert jax.tree.leaves(new.state["net"]) and list(new.params["net"]) == ["head"]
    assert np.any(new.params["net"]["head"]["kernel"] != ts.params["net"]["head"]["kernel"])


def test_means_complex_params_and_what_the_optimizers_get():
    """One player is complex, with masked losses in parts; the other asks for its loss elsewhere."""
    x, keep = DATA["x"][:8, 0], np.arange(8) < 5

    def z_loss(params, state, batch, key):
        losses = jnp.abs(params["z"] - batch["x"].astype("complex64")) ** 2
        return fnn.losses.mean(losses, batch["keep"]), (state, {})

    def w_loss(params, state, batch, key):
        return (params["w"] * params["z"].imag) ** 2, (state, {})

    def update(grads, opt_state, params=None, *, value, grad, value_fn, **extra):
        return -0.1 * grads, jnp.stack([value, value_fn(params), value_fn(2 * params), grad])

    txs = {"z": sgd(0.1), "w": fnn.optim.Transform(lambda p: jnp.zeros(4), update)}

    def twice(fn, **how):
        def value_and_grad(*args):
            value, grads = fnn.optim.accumulate(fn, k=2, **how)(*args)
            return value, 2 * grads

        return value_and_grad

    step = train.joint_step({"z": z_loss, "w": w_loss}, txs, grad={"z": twice})
    ts = train.join(z=player(np.complex64(1 + 2j), txs["z"]), w=player(np.float32(3), txs["w"]))
    ts, metrics = step(ts, {"x": x, "keep": keep})
    z = 1 + 2j - 0.1 * 2 * 2 * (1 + 2j - np.float64(x[:5]).mean())
    np.testing.assert_allclose(ts.params["z"], z, rtol=1e-5)
    wanted = np.mean(abs(1 + 2j - np.float64(x[:5])) ** 2)
    np.testing.assert_allclose(metrics["z/loss"], wanted, rtol=1e-5)
    value = (3 * z.imag) ** 2  # after the move of z
    np.testing.assert_allclose(
        ts.opt_state["w"], [value, value, 4 * value, 6 * z.imag**2], rtol=1e-5
    )


def test_a_joined_state_is_its_members_and_its_key_is_of_all():
    ts = start()
    a, b = jax.random.split(jax.random.key(0))
    critic = train.init(CRITIC, TXS["critic"], a, (1, 3))
    generator = train.init(GENERATOR, TXS["generator"], b, (1, 2))
    assert_same_bits(ts.params, {"critic": critic.params, "generator": generator.params})
    assert_same_bits(ts.opt_state["critic"], critic.opt_state)
    assert ts.state == {"critic": critic.state, "generator": generator.state}
    assert_same_bits(train.join(generator=generator, critic=critic).key, ts.key)
    later = generator._replace(step=jnp.int32(5))
    assert int(train.join(critic=critic, generator=later).step) == 0
    others = [critic._replace(key=jax.random.key(i)) for i in range(2)]
    keys = [train.join(critic=o, generator=g).key for o in others for g in (generator, critic)]
    assert len({jax.random.key_data(key).tobytes() for key in [*keys, ts.key]}) == 5


# --- errors


def test_what_a_game_refuses():
    def step(losses=LOSSES, txs=TXS, **how):
        return lambda: train.joint_step(losses, txs, **how)

    batch = {"x": DATA["x"][:8]}
    one = {"critic": critic_loss}
    unreduced = {**LOSSES, "critic": lambda *_: (jnp.zeros(3), ({}, {}))}
    own_state = {**LOSSES, "critic": lambda p, s, b, k: (jnp.zeros(()), (s["critic"], {}))}
    taken = {**LOSSES, "critic": lambda p, s, b, k: (jnp.zeros(()), (s, {"loss": 1.0}))}
    norm = {**LOSSES, "critic": lambda p, s, b, k: (jnp.zeros(()), (s, {"grad_norm": 1.0}))}
    cases = [
        (step(txs={"critic": TXS["critic"]}), errors.OptionError, "critic, generator and txs of c"),
        (step(losses={}, txs={}), errors.OptionError, "losses of none"),
        (step(losses=[critic_loss]), errors.InputError, "losses to be a dict"),
        (step(repeats=5), errors.InputError, "repeats to be a dict"),
        (step(repeats={"judge": 5}), errors.OptionError, "among critic, generator, got judge"),
        (step(repeats={"critic": 0}), errors.OptionError, "repeats of critic"),
        (step(repeats={"critic": 2}, order="simultaneous"), errors.OptionError, "alternate"),
        (step(order="random"), errors.OptionError, "order to be one of alternating, sim"),
        (step(grad={"judge": jax.grad}), errors.OptionError, "grad of players among"),
        (step(txs={**TXS, "critic": 1e-3}), errors.OptionError, "^critic: .*transform"),
        (step(losses={**LOSSES, "critic": CRITIC}), errors.InputError, "^critic: .*loss function"),
        (step(losses={**LOSSES, "critic": 3}), errors.OptionError, "^critic: .*function of"),
        (lambda: STEP(start(), {"x": DATA["x"][:7]}), errors.ShapeError, "4 equal.*7 examples"),
        (lambda: STEP(start(), {"x": DATA["x"][:0]}), errors.ShapeError, "4 equal.*0 examples"),
        (lambda: STEP(start(), {**batch, "y": 1.0}), errors.ShapeError, "leading axis"),
        (lambda: STEP(start().params, batch), errors.InputError, "TrainState"),
        (lambda: STEP(train.join(critic=player(1.0, sgd(1.0))), batch), errors.ParamsError,
         "params of critic, generator, got critic"),
        (lambda: STEP(player(1.0, sgd(1.0)), batch), errors.ParamsError, "fnn.train.join"),
        (lambda: step(unreduced)()(start(), batch), errors.ShapeError, "^critic: .*scalar loss"),
        (lambda: step(own_state)()(start(), batch), errors.ParamsError, "that of all"),
        (lambda: step(taken)()(start(), batch), errors.ParamsError, "another name"),
        (lambda: step(norm, grad_norm=True)()(start(), batch), errors.ParamsError, "grad_norm"),
        (lambda: train.join(), errors.InputError, "training states, got none"),
        (lambda: train.join(critic=start().params), errors.InputError, "^critic: .*TrainState"),
        (lambda: train.join(both=jax.tree.map(lambda a: jnp.stack([a, a]), start())),
         errors.RandomKeyError, "vmap"),
    ]  # fmt: skip
    for call, kind, text in cases:
        with pytest.raises(kind, match=text):
            call()
    assert refused(step(order="random")).layer == "joint_step"
    for ts in (train.join(critic=player(1.0, sgd(1.0))), player(1.0, sgd(1.0))):
        assert refused(lambda ts=ts: STEP(ts, batch)).layer == "joint_step"
    train.joint_step(one, {"critic": TXS["critic"]})  # a game of one is none, and legal
