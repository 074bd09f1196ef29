"""Members of a stack, and of an ensemble, are updated as they would be alone.

The oracle is the same optimizer on each member by itself, its outputs turned last by hand.
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn import errors, optim
from fnn.core.declarations import arrays_of
from fnn.initializers import zeros
from fnn.optim.stacked import check_stacks
from tests.optim.rows import run
from tests.optim.table import ROWS
from tests.support import asarray

N, STEPS = 3, 3
BUILDS = {k: partial(row.build, **row.usual) for k, row in ROWS.items() if "noisy" not in k}
BUILDS["muon of banks of filters"] = partial(optim.muon, 0.1, matrices=("*kernel", "*turned"))
MINDS = {name for name, row in ROWS.items() if row.checks.get("splits") is False}
MINDS |= {"muon of banks of filters"}
MINDS |= {"masked", "partition", "set_to_zero"}  # by numbers of axes
MINDS |= {"add_decayed_weights of kernels"}
WHOLE_TREE = "global_norm", "prodigy", "polyak", "named_chain", "lbfgs"
GLOBAL = {name for name in BUILDS if any(method in name for method in WHOLE_TREE)}
QUICK = {
    "average_params", "masked", "clip_by_global_norm", "muon of banks of filters", "novograd",
    "sm3", "lamb", "centralize",
}  # fmt: skip
SAMPLE = [name for name in BUILDS if name in QUICK or "FNN_QUICK" not in os.environ]


def block():
    """Declarations of one layer of each kind; the outputs of `turned` are not last."""
    kinds = {
        "kernel": ((3, 4), ("in", "out")),
        "bias": ((4,), ("out",)),
        "embedding": ((5, 3), ("vocabulary", "out")),
        "conv_kernel": ((2, 2, 3, 4), ("height", "width", "in", "out")),
        "turned": ((2, 4, 3), ("width", "out", "in")),
    }
    return {k: fnn.Param(shape, zeros, axes=axes) for k, (shape, axes) in kinds.items()}


def stack_of(specs, n):
    net = fnn.leaf("block", lambda x: (specs, {}), lambda params, state, x, **mode: (x, state))
    return fnn.repeat(net, n).specs((1,))[0]


DEEP = {"deep": stack_of(block(), N), "head": {"kernel": block()["kernel"]}}


def draw(specs, seed):
    """Gradients [STEPS, ...] and params."""
    rng = np.random.default_rng(seed)
    shapes = jax.tree.map(lambda p: p.stack + p.shape, specs)

    def normal(*lead):
        return jax.tree.map(
            lambda s: jnp.float32(rng.normal(size=lead + s)),
            shapes,
            is_leaf=lambda s: isinstance(s, tuple),
        )

    return normal(STEPS), normal()


def turned(tree, there=True):
    """A member with the outputs of its transposed kernel last, or back."""
    axes = (-2, -1) if there else (-1, -2)
    deep = {**tree["deep"], "turned": jnp.moveaxis(tree["deep"]["turned"], *axes)}
    return {**tree, "deep": deep}


def member(tree, i, axis):
    return {**tree, "deep": jax.tree.map(lambda a: jnp.take(a, i, axis), tree["deep"])}


ON_CPU = jax.default_backend() == "cpu"  # elsewhere SOAP's bases are of another decomposition


def close(got, want, tolerance=1e-6 if ON_CPU else 1e-4):
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        b = np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


def tolerance_of(name):
    """Updates of schedule-free methods are differences of params, which are ten times as large."""
    return 5e-6 if ON_CPU and name.startswith("schedule_free") else 1e-6 if ON_CPU else 1e-4


@pytest.mark.parametrize("name", [name for name in SAMPLE if name not in GLOBAL])
def test_a_member_of_a_stack_is_updated_as_alone(name):
    grads, params = draw(DEEP, 0)
    tx = BUILDS[name]()
    got = jax.jit(partial(run, optim.stacked(tx, DEEP)))(grads, params)
    alone = jax.jit(partial(run, tx))
    for i in range(N):
        one = alone(turned(member(grads, i, 1)), turned(member(params, i, 0)))
        close(member(got, i, 1), turned(one, there=False), tolerance_of(name))
    if name not in MINDS:  # so no mark is needed
        close(jax.jit(partial(run, tx))(grads, params), got, tolerance_of(name))


@pytest.mark.parametrize("name", sorted(GLOBAL & set(SAMPLE)))
def test_what_is_of_the_whole_tree_stays_so(name):
    grads, params = draw(DEEP, 0)
    tx = BUILDS[name]()
    got = jax.jit(partial(run, optim.stacked(tx, DEEP)))(grads, params)
    close(got, jax.jit(partial(run, tx))(grads, params), tolerance_of(name))


@pytest.mark.parametrize("name", SAMPLE)
def test_a_member_of_an_ensemble_is_updated_as_alone(name):
    """Whatever the optimizer: its global norms and masks are each member's as well."""
    specs = stack_of({"a": block()["kernel"], "b": block()["bias"]}, N)
    grads, params = draw(specs, 1)
    tx = BUILDS[name]() if name != "muon of banks of filters" else optim.muon(0.1)
    got = jax.jit(partial(run, optim.each_member(tx)))(grads, params)
    alone = jax.jit(partial(run, tx))
    for i in range(N):
        one = [jax.tree.map(lambda a, i=i, ax=ax: jnp.take(a, i, ax), t)
               for t, ax in ((grads, 1), (params, 0), (got, 1))]  # fmt: skip
        close(one[2], alone(*one[:2]), tolerance_of(name))


def started(tx, specs):
    """What `fnn.train.init` makes of a network with these params."""
    net = fnn.leaf("net", lambda x: (specs, {}), lambda params, state, x, **mode: (x, state))
    return jax.eval_shape(lambda: fnn.train.init(net, tx, jax.random.key(0), (1,)).opt_state)


@pytest.mark.parametrize("name", BUILDS)
def test_rules_per_leaf_need_stacked(name):
    """All rules that are defined per leaf, and nobody else."""
    tx = BUILDS[name]()
    if name in MINDS:
        with pytest.raises(fnn.FnnError, match=r"^deep/.*optim.stacked"):
            check_stacks(tx, DEEP)
        check_stacks(optim.stacked(tx, DEEP), DEEP)
    else:
        check_stacks(tx, DEEP)


def test_the_message_of_an_undeclared_stack():
    specs = {"deep": {"kernel": DEEP["deep"]["kernel"]}}
    with pytest.raises(fnn.FnnError) as error:
        started(optim.chain(optim.clip_by_global_norm(1.0), optim.lamb(0.1)), specs)
    assert str(error.value) == (
        "deep/kernel: expected a stacked optimizer, since layers are stacked here, got "
        "scale_by_trust_ratio, which treats a leaf as one layer; wrap it, as "
        "fnn.optim.stacked(tx, net.specs(x)[0]), or, where each member is a network of its own "
        "(an ensemble), as fnn.optim.each_member(tx)"
    )


def test_an_ensemble_of_stacks_needs_both():
    net = fnn.ensemble(fnn.repeat(fnn.dense(4), 2), 3)
    member = fnn.repeat(fnn.dense(4), 2).specs((1, 4))[0]
    key, tx = jax.random.key(0), optim.muon(0.1)
    for unwrapped in (tx, optim.each_member(tx)):
        with pytest.raises(fnn.FnnError, match="(kernel|bias): expected a stacked optimizer"):
            fnn.train.init(net, unwrapped, key, (1, 4))
    fnn.train.init(net, optim.each_member(optim.stacked(tx, member)), key, (1, 4))
    fnn.train.init(net, optim.stacked(tx, net.specs((1, 4))[0]), key, (1, 4))


def test_outputs_that_are_not_last_need_stacked():
    net = fnn.conv_transpose(4, (2,), transpose_kernel=True, use_bias=False)
    with pytest.raises(fnn.FnnError, match=r"kernel: .* not the last axis here, got centralize"):
        fnn.train.init(net, optim.centralize(), jax.random.key(0), (1, 5, 3))
    fnn.train.init(net, optim.lamb(0.1), jax.random.key(0), (1, 5, 3))  # to which they are alike
    tx = optim.stacked(optim.centralize(), net.specs((1, 5, 3))[0])
    g = {"kernel": jax.random.normal(jax.random.key(1), (2, 4, 3))}
    (got,) = jax.tree.leaves(tx.update(g, tx.init(g))[0])
    np.testing.assert_allclose(got.mean((0, 2)), 0, atol=1e-6)


def equations(jaxpr):
    """How many there are in a program, and in the programs within."""
    inner = [getattr(v, "jaxpr", None) for eqn in jaxpr.eqns for v in eqn.params.values()]
    return len(jaxpr.eqns) + sum(equations(j) for j in inner if hasattr(j, "eqns"))


@pytest.mark.parametrize("name", ["muon", "lamb", "soap", "sm3"])
def test_the_program_does_not_grow_with_depth(name):
    def size(wrap, n):
        specs = stack_of(block(), n)
        tx, params = wrap(BUILDS[name](), specs), arrays_of(specs)

        def whole(p):
            return tx.update(p, tx.init(p), p)

        return equations(jax.make_jaxpr(whole)(params).jaxpr)

    for wrap in (optim.stacked, lambda tx, specs: optim.each_member(tx)):
        assert size(wrap, 4) == size(wrap, 64)


# --- networks


def test_a_deep_network_learns_as_its_layers_in_a_row():
    """`repeat` under clips by units and by all and Muon, against `serial`."""
    layer = fnn.residual(fnn.serial(fnn.rms_norm(), fnn.dense(4), jnp.tanh))
    deep, row, x = fnn.repeat(layer, 2), fnn.serial(a=layer, b=layer), (2, 4)
    tx = optim.chain(
        optim.adaptive_grad_clip(0.01), optim.clip_by_global_norm(0.1), optim.muon(0.1)
    )
    told = optim.stacked(tx, deep.specs(x)[0])
    batch = tuple(jax.random.normal(jax.random.key(i), x, "float32") for i in (1, 2))
    start = fnn.train.init(deep, told, jax.random.key(0), x)
    ts = start
    parts = {name: jax.tree.map(lambda a, i=i: a[i], start.params) for i, name in enumerate("ab")}
    alone = start._replace(params=parts, opt_state=tx.init(parts))
    step = fnn.train.step(fnn.train.supervised(deep, fnn.losses.squared_error), told)
    step_alone = fnn.train.step(fnn.train.supervised(row, fnn.losses.squared_error), tx)
    for _ in range(2):
        ts, alone = step(ts, batch)[0], step_alone(alone, batch)[0]
    want = jax.tree.map(lambda *a: jnp.stack(a), alone.params["a"], alone.params["b"])
    close(ts.params, want, 1e-3)
    back = jax.tree.unflatten(jax.tree.structure(ts.opt_state), jax.tree.leaves(ts.opt_state))
    assert jax.tree.structure(back) == jax.tree.structure(start.opt_state)


@pytest.mark.parametrize("make", [
    lambda: fnn.cast(fnn.weight_norm(fnn.dense(4)), jnp.float32),
    lambda: fnn.lora(fnn.dense(4), 4),
    lambda: fnn.quantize(fnn.local_conv(4, (1,))),
])  # fmt: skip
def test_derived_params_are_stacks_too(make):
    """What `reparam` puts in a param's place; sizes are alike, so that none tells by itself."""
    layer = make()
    net = fnn.repeat(layer, 4)
    x = (1, 4, 4)
    params, _ = net.init(jax.random.key(0), x)
    tx = optim.scale_by_novograd()
    told, own = optim.stacked(tx, net.specs(x)[0]), optim.stacked(tx, layer.specs(x)[0])
    got, _ = told.update(params, told.init(params))
    for i in range(4):
        p = jax.tree.map(lambda a, i=i: a[i], params)
        close(jax.tree.map(lambda a, i=i: a[i], got), own.update(p, own.init(p))[0])


def test_gates_of_a_cell_are_no_stack():
    """They are drawn apart and stand side by side in one kernel, in a stack of cells as well."""
    cell = fnn.lstm(4)
    x, tx = (1, 2, 4), optim.scale_by_novograd()
    params, _ = cell.init(jax.random.key(0), x)
    told = optim.stacked(tx, cell.specs(x)[0])
    close(told.update(params, told.init(params))[0], tx.update(params, tx.init(params))[0])


def test_members_of_an_ensemble_learn_as_alone():
    """Under Muon and a global norm, from the batches of all; seen as one training state."""
    net = fnn.serial(fnn.dense(4), jnp.tanh, fnn.dense(3))
    several, x = fnn.ensemble(net, 2), jax.random.normal(jax.random.key(1), (5, 3))
    tx = optim.chain(optim.clip_by_global_norm(0.01), optim.muon(0.1))
    loss, y = fnn.losses.squared_error, jnp.ones((5, 3))
    each = optim.each_member(tx)
    ts = fnn.train.init(several, each, jax.random.key(0), x)
    step = fnn.train.step(fnn.train.supervised(several, fnn.ensembles.each(loss)), each)
    own_step = fnn.train.step(fnn.train.supervised(net, loss), tx)
    after = step(step(ts, (x, y))[0], (x, y))[0]
    for i in range(2):
        p = jax.tree.map(lambda a, i=i: a[i], ts.params)
        own = ts._replace(params=p, opt_state=tx.init(p))
        own = own_step(own_step(own, (x, y))[0], (x, y))[0]
        close(jax.tree.map(lambda a, i=i: a[i], after.params), own.params)


# --- what goes along: masks, extra arguments, averages


def test_masks_see_members():
    """By path, by a function of axes, and as bools."""
    p = draw(DEEP, 0)[1]
    by_axes = lambda tree: jax.tree.map(lambda a: a.ndim == 2, tree)  # noqa: E731
    chosen = {"deep": dict.fromkeys(block(), False), "head": {"kernel": True}}
    chosen["deep"] |= {"kernel": True, "embedding": True}
    for mask in (by_axes, chosen, ("*/kernel", "*/embedding")):
        tx = optim.stacked(optim.masked(optim.clip_by_block_rms(1e-3), mask), DEEP)
        u, _ = tx.update(p, tx.init(p), p)
        rms = jnp.sqrt(jnp.mean(u["deep"]["kernel"] ** 2, (1, 2)))
        np.testing.assert_allclose(rms, 1e-3, rtol=1e-5)
        assert (u["deep"]["bias"] == p["deep"]["bias"]).all()
        again = optim.masked(optim.stacked(optim.clip_by_block_rms(1e-3), DEEP), chosen)
        close(again.update(p, again.init(p), p)[0], u)


def hill(params):
    """Another curvature for each element, so that order tells."""
    leaves = jax.tree.leaves(params)
    return sum(
        jnp.sum((1 + jnp.arange(a.size, dtype=a.dtype).reshape(a.shape)) * a**4) for a in leaves
    )


@pytest.mark.parametrize("build", [
    partial(optim.sophia, 0.1, gamma=1.0, key=jax.random.key(0)), optim.lbfgs,
])  # fmt: skip
def test_value_fn_is_of_params_as_they_are_stored(build):
    """Turned kernels and all: the same run as of the plain tree, up to how signs are drawn."""
    specs = {"w": fnn.Param((2, 2), zeros, axes=("out", "in"), stack=(2,))}
    p, tx = draw(specs, 0)[1], build()
    told = optim.stacked(tx, specs)

    def second(tx):
        value, g = jax.value_and_grad(hill)(p)
        u, state = tx.update(g, tx.init(p), p, value=value, grad=g, value_fn=hill)
        near = optim.apply_updates(p, u)
        value, g = jax.value_and_grad(hill)(near)
        return tx.update(g, state, near, value=value, grad=g, value_fn=hill)[0]

    close(jax.jit(lambda: second(told))(), jax.jit(lambda: second(tx))(), 1e-4)


def test_value_fn_of_an_ensemble_is_each_members():
    """A line search of each member along its own direction."""
    p = {"w": jax.random.normal(jax.random.key(0), (2, 3))}

    def whole(p):
        return jnp.sum(jax.vmap(hill)(p))

    def step(tx, f, p):
        value, g = jax.value_and_grad(f)(p)
        return tx.update(g, tx.init(p), p, value=value, grad=g, value_fn=f)[0]

    got = step(optim.each_member(optim.lbfgs()), whole, p)
    for i in range(2):
        own = step(optim.lbfgs(), hill, {"w": p["w"][i]})
        close(got["w"][i], own["w"], 1e-4)


@pytest.mark.parametrize("build", [
    lambda: optim.chain(optim.sgd(0.1), optim.average_params()),
    lambda: optim.lookahead(optim.sgd(0.1), 2),
    lambda: optim.schedule_free_sgd(0.1),
])  # fmt: skip
def test_averages_come_back_as_params_are_stored(build):
    grads, p = draw(DEEP, 0)
    g = jax.tree.map(lambda a: a[0], grads)
    read = optim.averaged_params
    tx = build()
    if "schedule" in str(type(tx.init(p)).__name__).lower():
        read = optim.schedule_free_eval_params
    told = optim.stacked(tx, DEEP)
    got, want = (read(t.update(g, t.init(p), p)[1], p) for t in (told, tx))
    close(got, want)


def test_noise_and_nans_of_members():
    """Members draw apart; each records whether it had a NaN."""
    specs = {"w": fnn.Param((100,), zeros, stack=(2,))}
    g = {"w": jnp.zeros((2, 100))}
    tx = optim.stacked(optim.add_noise(1.0, 0.5, jax.random.key(0)), specs)
    u = tx.update(g, tx.init(g))[0]["w"]
    assert abs(np.corrcoef(u)[0, 1]) < 0.5
    tx = optim.stacked(optim.zero_nans(), specs)
    _, state = tx.update({"w": g["w"].at[1, 3].set(jnp.nan)}, tx.init(g))
    assert np.array_equal(jax.tree.leaves(state), [[False, True]])


# --- optax


def test_optax_difference_muon_of_filters_and_stacks():
    """A bank of filters is a matrix there too, if asked to; a stack, axis 0, by `stacked`."""
    options = dict(beta=0.9, nesterov=False)
    grads = {"w": jax.random.normal(jax.random.key(0), (STEPS, 2, 3, 4, 5))}
    p = {"w": jnp.ones((2, 3, 4, 5))}

    def theirs(*reduction):
        numbers = {"w": optax.contrib.MuonDimensionNumbers(reduction, 3)}
        tx = optax.contrib.muon(0.1, **options, muon_weight_dimension_numbers=numbers)
        with jax.numpy_dtype_promotion("standard"):
            return run(tx, grads, p)

    ours = optim.muon(0.1, **options, matrices="w")
    close(run(ours, grads, p), theirs(0, 1, 2), 1e-4)
    told = optim.stacked(ours, {"w": fnn.Param((3, 4, 5), zeros, stack=(2,))})
    close(run(told, grads, p), theirs(1, 2), 1e-4)


def test_optax_takes_a_stack_for_one_layer():
    specs = {"w": fnn.Param((4,), zeros, stack=(2,))}
    p = {"w": asarray([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.3, 0.4]])}
    tx = optim.stacked(optim.scale_by_trust_ratio(), specs)
    got = tx.update(jax.tree.map(jnp.ones_like, p), tx.init(p), p)[0]["w"]
    np.testing.assert_allclose(jnp.linalg.norm(got, axis=1), [5, 0.5], rtol=1e-6)
    theirs = optax.scale_by_trust_ratio()
    got = theirs.update(jax.tree.map(jnp.ones_like, p), theirs.init(p), p)[0]["w"]
    np.testing.assert_allclose(got, (25.25 / 8) ** 0.5, rtol=1e-6)


# --- mistakes


def test_wrong_trees_are_refused():
    p = draw(DEEP, 0)[1]
    tx = optim.stacked(optim.sgd(0.1), DEEP)
    with pytest.raises(errors.ParamsError, match="params head/kernel .3, 4., as declared, got"):
        tx.init({**p, "head": {"kernel": jnp.ones(2)}})
    with pytest.raises(errors.ParamsError, match="params to be a tree as declared"):
        tx.init(p["deep"])
    with pytest.raises(errors.InputError, match="specs"):
        optim.stacked(optim.sgd(0.1), p)
    with pytest.raises(errors.ParamsError, match="head/kernel .*stacked"):
        optim.each_member(optim.sgd(0.1)).init({**p, "head": {"kernel": jnp.ones(())}})
