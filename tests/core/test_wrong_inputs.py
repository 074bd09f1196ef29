"""Wrong inputs of layers made of layers, and of functions over networks and trees.

`test_errors.py` spoils leaf layers by a table; here the same is done two levels down inside what it
cannot drive: combinators, reparametrizations, attention, layers of integers or of no input. One
generator yields every wrong call. Each raises fnn's own error at the layer's path, with the same
text when traced, or it was legal after all and gives the shape that is worked out here by hand.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from fnn.core.declarations import zeros_of
from fnn.testing import mutations
from tests import support
from tests.core import table


class Row(NamedTuple):
    """A layer, legal inputs of it, and the shape of y for the shapes of the inputs."""

    layer: fnn.Layer
    xs: tuple
    out: Callable  # of shapes; None where they are illegal together


def floats(*shape):
    return support.ones(shape)


def ints(*shape):
    return support.ones(shape, np.int32)


def last(n):
    return lambda s: (*s[:-1], n)


def same(s):
    return s


def halves(p):
    return {"half": jax.tree.map(lambda a: a / 2, p)}


def wholes(p):
    return jax.tree.map(lambda a: a * 2, p["half"])


def looked_up(n):
    return lambda s: (*s, n)


def masked_shape(x, mask):
    """Of a transformer block of two heads, whose mask has the axes of the scores, or 1."""
    one, each = (*x[:-1], x[-2]), (*x[:-2], 2, x[-2], x[-2])
    full = {len(one): one, len(each): each}.get(len(mask))
    fits = full and all(a in (1, b) for a, b in zip(mask, full, strict=True))
    return x if fits else None


TABLE = {
    "serial": Row(fnn.serial(fnn.dense(4), jnp.tanh, fnn.dense(3)), (floats(2, 5),), last(3)),
    "parallel": Row(
        fnn.parallel(fnn.dense(2), fnn.dense(3)),
        (floats(2, 5),),
        lambda s: {"dense1": (*s[:-1], 2), "dense2": (*s[:-1], 3)},
    ),
    "residual": Row(fnn.residual(fnn.dense(5)), (floats(2, 5),), same),
    "repeat": Row(fnn.repeat(fnn.dense(5), 3), (floats(2, 5),), same),
    "repeat serial": Row(
        fnn.repeat(fnn.serial(fnn.dense(5), fnn.batch_norm()), 3), (floats(2, 5),), same
    ),
    "ensemble": Row(fnn.ensemble(fnn.dense(2), 3), (floats(4, 5),), lambda s: (3, *s[:-1], 2)),
    "remat": Row(fnn.remat(fnn.dense(3)), (floats(2, 5),), last(3)),
    "remat serial": Row(
        fnn.remat(fnn.serial(fnn.dense(3), fnn.batch_norm())), (floats(2, 5),), last(3)
    ),
    "cast": Row(fnn.cast(fnn.dense(3), jnp.bfloat16), (floats(2, 5),), last(3)),
    "cast serial": Row(
        fnn.cast(fnn.serial(fnn.dense(3), fnn.batch_norm()), jnp.bfloat16), (floats(2, 5),), last(3)
    ),
    "reparam": Row(fnn.reparam(fnn.dense(3), halves, wholes), (floats(2, 5),), last(3)),
    "weight_norm": Row(fnn.weight_norm(fnn.dense(3)), (floats(2, 5),), last(3)),
    "spectral_norm": Row(fnn.spectral_norm(fnn.dense(3)), (floats(2, 5),), last(3)),
    "lora": Row(fnn.lora(fnn.dense(3), 2), (floats(2, 5),), last(3)),
    "lora serial": Row(
        fnn.lora(fnn.serial(fnn.dense(3), fnn.dense(2)), 2), (floats(2, 5),), last(2)
    ),
    "prune": Row(fnn.prune(fnn.dense(3), 0.5), (floats(2, 5),), last(3)),
    "quantize": Row(fnn.quantize(fnn.dense(3), 4), (floats(2, 5),), last(3)),
    "stored": Row(fnn.stored(fnn.dense(3), jnp.int4), (floats(2, 5),), last(3)),
    "attention memory": Row(
        fnn.attention(4, 2, kv_heads=1),
        (floats(2, 3, 4), floats(2, 5, 6), jnp.ones((2, 3, 5), bool)),
        lambda x, *rest: (*x[:-1], 4),
    ),
    "attention cache": Row(
        fnn.attention(4, 2, causal=True, rotary=10.0, cache=6), (floats(2, 3, 5),), last(4)
    ),
    "transformer_block": Row(
        fnn.transformer_block(4, 2, causal=True),
        (floats(2, 3, 4), jnp.ones((2, 3, 3), bool)),
        masked_shape,
    ),
    "embedding": Row(fnn.embedding(4, 3), (ints(2, 5),), looked_up(3)),
    "parameter": Row(fnn.parameter((2, 3)), (), lambda: (2, 3)),
    "bilinear": Row(
        fnn.bilinear(3),
        (floats(2, 4), floats(2, 5)),
        lambda a, b: (*a[:-1], 3) if a[:-1] == b[:-1] else None,
    ),
    "separable_conv": Row(fnn.separable_conv(3, (2,)), (floats(2, 4, 3),), last(3)),
}
OPTIONAL = ("attention memory", "transformer_block")  # which have inputs that may be left out
NOT_ARRAYS = (
    None, "text", 1.5, 3, True, [1.0, 2.0], {"x": None}, object(), jnp.float32, (2, 3),
    np.array(["a"]), np.array([None]), jax.random.key(0), lambda x: x, fnn.dense(3),
)  # fmt: skip
DTYPES = (jnp.int32, jnp.uint8, bool, jnp.complex64, jnp.bfloat16, jnp.float16, jnp.float32)
BAD_KEYS = (0, "key", jnp.ones(2), jax.random.split(jax.random.key(0)), object(), (1, 2))


REFUSED: set[str] = set()  # the ids of all cases, as they are refused


class Case(NamedTuple):
    """`call(*args)` is wrong: it says `path`, or something below it."""

    id: str
    call: Callable
    args: tuple
    path: str
    wanted: Callable = lambda: None  # the shape of y, if the call was legal
    traced: bool = True  # whether args are arrays, so that the call can be traced


def shape_mutations(shape):
    for axis in range(len(shape)):
        for size in {shape[axis] + 1, shape[axis] - 1, 0, 1} - {shape[axis]}:
            yield (*shape[:axis], size, *shape[axis + 1 :])
    for drop in range(1, len(shape) + 1):
        yield shape[drop:]
    yield (1, *shape)
    yield (*shape, 1)


@functools.cache
def placed(name):
    row = TABLE[name]
    net = fnn.serial(inner=fnn.serial(layer=row.layer))
    params, state = net.init(jax.random.key(0), *row.xs)
    return net, params, state


def replaced(xs, i, x):
    return (*xs[:i], x, *xs[i + 1 :])


def wrong_calls(name):
    """All wrong calls of one row."""
    row = TABLE[name]
    net, params, state = placed(name)

    def call(*xs):
        return net(params, *xs, state=state)

    def wanted(*xs):
        return lambda: row.out(*(x.shape for x in xs))

    for i, x in enumerate(row.xs):
        for shape in shape_mutations(x.shape):
            xs = replaced(row.xs, i, support.ones(shape, x.dtype))
            yield Case(f"{name}: x{i} {shape}", call, xs, "inner/layer", wanted(*xs))
        for dtype in DTYPES:
            if dtype != x.dtype:
                xs = replaced(row.xs, i, support.asarray(x, dtype))
                yield Case(
                    f"{name}: x{i} {jnp.dtype(dtype).name}", call, xs, "inner/layer", wanted(*xs)
                )
        for j, bad in enumerate(NOT_ARRAYS):
            if bad is None and name in OPTIONAL and i > 0:
                continue  # a mask left out
            xs = replaced(row.xs, i, bad)
            yield Case(f"{name}: x{i} no array {j}", call, xs, "inner/layer", traced=False)
    for n in range(len(row.xs) + 3):
        if n != len(row.xs) and not (name in OPTIONAL and 0 < n < len(row.xs)):
            xs = (row.xs + (floats(2, 5),) * 3)[:n]
            yield Case(f"{name}: {n} inputs", call, xs, "inner/layer", traced=n > 0)
    for what, tree in (("params", params), ("state", state)):
        for wrong, mutated in mutations(tree):
            trees = (mutated, state) if what == "params" else (params, mutated)

            def run(a, b):
                return net.apply(a, b, *row.xs)[0]

            yield Case(f"{name}: {what} with {wrong}", run, trees, "")
        for j, bad in enumerate((None, (params, state), [], 3, "text", floats(2))):
            for depth in ((), ("inner",), ("inner", "layer")):
                if depth and not tree:
                    continue
                spoiled = functools.reduce(lambda t, k: {k: t}, reversed(depth), bad)
                trees = (spoiled, state) if what == "params" else (params, spoiled)

                def run(a, b):
                    return net.apply(a, b, *row.xs)[0]

                yield Case(
                    f"{name}: {what} {depth} {j}",
                    run,
                    trees,
                    "/".join(depth) if bad is not None or depth != ("inner", "layer") else "",
                    traced=False,
                )
    for j, bad in enumerate(BAD_KEYS):

        def run(bad):
            return net.apply(params, state, *row.xs, key=bad, train=True)[0]

        yield Case(f"{name}: key {j}", run, (bad,), "", wanted(*row.xs), traced=False)


def outcome(call, *args):
    try:
        y = call(*args)
    except errors.FnnError as error:
        return error, None
    return None, y


def shapes(y):
    return jax.tree.map(jnp.shape, y)


def assert_teaches(error, path):
    assert isinstance(error, (ValueError, TypeError))
    assert error.expected and error.got and error.mend and len(str(error)) < 600
    where = error.path or error.layer
    assert where and error.path.startswith(path), (where, path)
    assert str(error) == f"{where}: expected {error.expected}, got {error.got}; {error.mend}"


def refused(case):
    """Whether a case is refused, once it has been held against all that is asked of it."""
    run = functools.partial(jax.eval_shape, case.call) if case.traced else case.call
    error, y = outcome(run, *case.args)
    if error is None:
        assert shapes(y) == case.wanted(), (shapes(y), case.wanted())
        return False
    assert_teaches(error, case.path)
    REFUSED.add(case.id)
    if case.traced:
        eager, _ = outcome(case.call, *case.args)
        assert str(error) == str(eager) and type(error) is type(eager), (error, eager)
    return True


@pytest.mark.parametrize("name", TABLE)
def test_wrong_calls(name):
    assert sum(map(refused, wrong_calls(name))) >= 20


@pytest.mark.parametrize("name", TABLE)
def test_wrong_keys_of_the_layer_alone(name):
    row = TABLE[name]
    params, state = zeros_of(row.layer.specs(*row.xs))
    for bad in BAD_KEYS:
        error, _ = outcome(
            lambda k: row.layer.apply(params, state, *row.xs, key=k, train=True), bad
        )
        assert isinstance(error, errors.RandomKeyError), bad
        assert_teaches(error, "")


# --- options


x23, x234 = floats(2, 3), floats(2, 3, 4)
dense = fnn.dense(3)
BAD_OPTIONS = (
    0, -1, 2.5, True, None, "text", (), (0,), [None], {}, float("nan"), jnp.ones(2), object(),
    np.array(["a"]), ("kernel", 3), jax.random.key(0), np.complex64(1), np.str_("a"),
    jnp.float32(jnp.inf), fnn.dense,
)  # fmt: skip
# By layer and option: the builder over one bad value, legal inputs, and how many of BAD_OPTIONS
# are no mistakes (None is a default; 0, 2.5 and infinity may be numbers like others).
OPTIONS = {
    "serial layer": (fnn.serial, x23, 0),
    "parallel layer": (fnn.parallel, x23, 0),
    "residual layer": (fnn.residual, x23, 0),
    "residual shortcut": (lambda b: fnn.residual(dense, b), x23, 1),
    "repeat layer": (lambda b: fnn.repeat(b, 2), x23, 0),
    "repeat n": (lambda b: fnn.repeat(dense, b), x23, 0),
    "ensemble layer": (lambda b: fnn.ensemble(b, 2), x23, 0),
    "ensemble n": (lambda b: fnn.ensemble(dense, b), x23, 0),
    "remat layer": (fnn.remat, x23, 0),
    "remat policy": (lambda b: fnn.remat(dense, b), x23, 2),
    "cast layer": (lambda b: fnn.cast(b, jnp.float16), x23, 0),
    "cast compute_dtype": (lambda b: fnn.cast(dense, b), x23, 0),
    "cast output_dtype": (lambda b: fnn.cast(dense, jnp.float16, output_dtype=b), x23, 1),
    "cast param_dtype": (lambda b: fnn.cast(dense, jnp.float16, param_dtype=b), x23, 0),
    "reparam layer": (lambda b: fnn.reparam(b, halves, wholes), x23, 0),
    "reparam encode": (lambda b: fnn.reparam(dense, b, wholes), None, 1),
    "reparam decode": (lambda b: fnn.reparam(dense, halves, b), None, 1),
    "weight_norm layer": (fnn.weight_norm, x23, 0),
    "weight_norm names": (lambda b: fnn.weight_norm(dense, b), x23, 0),
    "spectral_norm names": (lambda b: fnn.spectral_norm(dense, b), x23, 0),
    "spectral_norm iterations": (lambda b: fnn.spectral_norm(dense, iterations=b), x23, 0),
    "lora rank": (lambda b: fnn.lora(dense, b), x23, 0),
    "lora names": (lambda b: fnn.lora(dense, 2, b), x23, 0),
    "lora alpha": (lambda b: fnn.lora(dense, 2, alpha=b), x23, 5),
    "prune fraction": (lambda b: fnn.prune(dense, b), x23, 1),
    "prune names": (lambda b: fnn.prune(dense, 0.5, b), x23, 0),
    "quantize bits": (lambda b: fnn.quantize(dense, b), x23, 0),
    "quantize names": (lambda b: fnn.quantize(dense, 4, b), x23, 0),
    "quantize group_size": (lambda b: fnn.quantize(dense, 4, group_size=b), x23, 1),
    "stored dtype": (lambda b: fnn.stored(dense, b), x23, 0),
    "stored names": (lambda b: fnn.stored(dense, jnp.int8, b), x23, 0),
    "stored group_size": (lambda b: fnn.stored(dense, jnp.int8, group_size=b), x23, 1),
    "attention features": (lambda b: fnn.attention(b, 2), x234, 0),
    "attention heads": (lambda b: fnn.attention(4, b), x234, 0),
    "attention kv_heads": (lambda b: fnn.attention(4, 2, kv_heads=b), x234, 1),
    "attention head_dim": (lambda b: fnn.attention(4, 2, head_dim=b), x234, 1),
    "attention rotary": (lambda b: fnn.attention(4, 2, rotary=b), x234, 4),
    "attention cache": (lambda b: fnn.attention(4, 2, causal=True, cache=b), x234, 1),
    "attention kernel_init": (lambda b: fnn.attention(4, 2, kernel_init=b), x234, 0),
    "attention implementation": (lambda b: fnn.attention(4, 2, implementation=b), x234, 1),
    "attention window": (lambda b: fnn.attention(4, 2, window=b), x234, 1),
    "attention soft_cap": (lambda b: fnn.attention(4, 2, soft_cap=b), x234, 2),
    "attention dropout": (lambda b: fnn.attention(4, 2, dropout=b), x234, 2),
    "transformer_block features": (lambda b: fnn.transformer_block(b, 2), x234, 0),
    "transformer_block hidden": (lambda b: fnn.transformer_block(4, 2, hidden=b), x234, 1),
    "transformer_block rate": (lambda b: fnn.transformer_block(4, 2, rate=b), x234, 1),
    "transformer_block activation": (lambda b: fnn.transformer_block(4, 2, activation=b), None, 1),
    "embedding num_embeddings": (lambda b: fnn.embedding(b, 3), ints(2), 0),
    "embedding features": (lambda b: fnn.embedding(4, b), ints(2), 0),
    "embedding embedding_init": (lambda b: fnn.embedding(4, 2, embedding_init=b), ints(2), 0),
    "embedding dtype": (lambda b: fnn.embedding(4, 2, dtype=b), ints(2), 0),
    "bilinear features": (fnn.bilinear, None, 0),
    "bilinear kernel_init": (lambda b: fnn.bilinear(2, kernel_init=b), None, 0),
    "dropout rate": (fnn.dropout, x23, 1),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_wrong_options(option):
    """Refused by the builder or by specs, and never by anything else than fnn."""
    build, x, legal = OPTIONS[option]
    accepted = []
    for i, bad in enumerate(BAD_OPTIONS):
        error, _ = outcome(lambda b: build(b) if x is None else build(b).specs(x), bad)
        if error is None:
            accepted.append(bad)
            continue
        REFUSED.add(f"{option} {i}")
        assert_teaches(error, "")
    assert len(accepted) == legal, accepted


@pytest.mark.parametrize("call", [
    lambda x, r: fnn.dropout(r).apply({}, {}, x, key=jax.random.key(0), train=True)[0],
    lambda x, r: fnn.losses.huber(x, x, r),
    lambda x, r: fnn.losses.softmax_cross_entropy(x, x, label_smoothing=r),
    lambda x, r: fnn.losses.distillation(x, x, r),
    lambda x, r: fnn.prune(fnn.dense(2), r).init(jax.random.key(0), x)[0]["bias"],
])  # fmt: skip
def test_a_number_in_an_array_may_be_known_inside_jit(call):
    """Under jit, jax traces even what it knows: a check that compares must do it on the host."""
    rate = jnp.float32(0.5)
    np.testing.assert_allclose(jax.jit(lambda x: call(x, rate))(x23), call(x23, 0.5), rtol=1e-6)
    wrong = jnp.float32(-1)
    error, _ = outcome(jax.eval_shape, lambda x: call(x, wrong), x23)
    assert isinstance(error, errors.OptionError)


def test_a_known_cache_inside_jit():
    net = fnn.attention(4, 2, causal=True, cache=4)
    params, state = net.init(jax.random.key(0), x234)
    y, after = jax.eval_shape(lambda x: net.apply(params, state, x), x234)
    assert y.shape == x234.shape and after["cache"]["k"].shape == (2, 4, 2, 2)
    _, full = net.apply(params, state, x234)
    eager, _ = outcome(lambda x: net.apply(params, full, x), x234)
    traced, _ = outcome(jax.eval_shape, lambda x: net.apply(params, full, x), x234)
    assert str(eager) == str(traced) and isinstance(eager, errors.InputError)


# --- functions over networks


def test_probes_of_something_else():
    net = fnn.serial(a=fnn.dense(3), r=fnn.repeat(fnn.dense(3), 2))
    params, _ = net.init(jax.random.key(0), x23)
    for bad in (3, "text", [], jnp.ones(2), fnn.dense, None):
        calls = {
            "tap": [lambda b: fnn.tap(b), lambda b: fnn.tap(net)(b, x23)],
            "swap": [lambda b: fnn.swap(b, {}), lambda b: fnn.swap(net, b)],
            "summary": [lambda b: fnn.analysis.summary(b, x23)],
            "nan_report": [lambda b: fnn.analysis.nan_report(b, params, x23),
                           lambda b: fnn.analysis.nan_report(net, b, x23),
                           lambda b: fnn.analysis.nan_report(net, {**params, "a": b}, x23)],
        }  # fmt: skip
        if bad is not None:
            calls["tap"] += [
                lambda b: fnn.tap(net)(params, x23, state=b),
                lambda b: fnn.tap(net).apply(params, {}, x23, key=b),
            ]
            calls["nan_report"] += [
                lambda b: fnn.analysis.nan_report(net, params, x23, state=b),
                lambda b: fnn.analysis.nan_report(net, params, x23, key=b),
            ]
            if bad is not fnn.dense:
                calls["nan_report"] += [lambda b: fnn.analysis.nan_report(net, params, x23, loss=b)]
        if not isinstance(bad, str):
            calls["tap"] += [lambda b: fnn.tap(net, b)]
        if not isinstance(bad, jax.Array):
            calls["summary"] += [lambda b: fnn.analysis.summary(net, b)]
            calls["tap"] += [lambda b: fnn.tap(net)(params, b)]
        for name, each in calls.items():
            for i, call in enumerate(each):
                error, _ = outcome(call, bad)
                assert error is not None, (name, i, bad)
                assert_teaches(error, "")
                REFUSED.add(f"{name} {i} {type(bad)}")
    error, _ = outcome(jax.jit(lambda x: fnn.analysis.nan_report(net, params, x)), x23)
    assert isinstance(error, errors.InputError) and "outside jit" in error.mend


# --- places


class Broken(Exception):
    pass


def broken(x):
    raise Broken("mine")


INSIDE = {
    "repeat": lambda f: fnn.repeat(f, 2),
    "ensemble": lambda f: fnn.ensemble(f, 2),
    "remat": fnn.remat,
    "cast": lambda f: fnn.cast(f, jnp.bfloat16),
    "reparam": lambda f: fnn.reparam(f, halves, wholes),
    "residual": fnn.residual,
    "parallel": fnn.parallel,
}


@pytest.mark.parametrize("name", INSIDE)
def test_ones_own_exception_passes_through_with_its_path(name):
    sound = fnn.serial(outer=INSIDE[name](fnn.serial(dense=fnn.dense(3), mine=jnp.tanh)))
    params, state = zeros_of(sound.specs(x23))
    spoiled = fnn.swap(sound, {"*mine": broken})
    place = {"residual": "outer/layer/mine", "parallel": "outer/serial1/mine"}.get(
        name, "outer/mine"
    )
    for call in (
        lambda x: spoiled.specs(x), lambda x: spoiled(params, x, state=state),
        jax.jit(lambda x: spoiled(params, x, state=state)),
    ):  # fmt: skip
        with pytest.raises(Broken) as raised:
            call(x23)
        assert raised.value.args == ("mine",)
        ours = [note for note in raised.value.__notes__ if "fnn layer" in note]
        assert ours == [f"in the fnn layer {place}"]


def joined(a, b):
    return fnn.serial(both=fnn.parallel(a=a, b=b), add=lambda y: y["a"] + y["b"])


NETS = st.recursive(
    st.sampled_from([lambda: fnn.dense(4), fnn.layer_norm, fnn.batch_norm]).map(
        lambda make: make()
    ),
    lambda inner: st.one_of(
        st.builds(lambda a: fnn.serial(jnp.tanh, a), inner),
        st.builds(lambda a, b: fnn.serial(first=a, second=b), inner, inner),
        st.builds(joined, inner, inner),
        inner.map(fnn.residual),
        inner.map(lambda a: fnn.repeat(a, 2)),
        inner.map(fnn.remat),
        inner.map(lambda a: fnn.cast(a, jnp.float32)),
    ),
    max_leaves=4,
)


def places(tree, path=()):
    """The paths of the dicts that hold arrays."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from places(value, (*path, name))
        else:
            yield path


def altered(tree, path, change):
    if not path:
        return change(tree)
    return {**tree, path[0]: altered(tree[path[0]], path[1:], change)}


CHANGES = {
    "extra": lambda leaf: {**leaf, "extra_": leaf[min(leaf)]},
    "missing": lambda leaf: dict(list(leaf.items())[1:]),
    "dtype": lambda leaf: {**leaf, min(leaf): leaf[min(leaf)].astype(jnp.int8)},
}


@given(net=NETS, wrapped=st.booleans(), change=st.sampled_from(sorted(CHANGES)), data=st.data())
def test_the_path_is_the_place_of_the_mistake(net, wrapped, change, data):
    net = fnn.serial(net=fnn.ensemble(net, 2) if wrapped else net)
    params, state = zeros_of(net.specs(floats(2, 4)))
    assert jax.eval_shape(lambda p: net(p, floats(2, 4), state=state), params) is not None
    path = data.draw(st.sampled_from(sorted(set(places(params)))))
    wrong = altered(params, path, CHANGES[change])
    error, _ = outcome(jax.eval_shape, lambda p: net(p, floats(2, 4), state=state), wrong)
    assert error is not None and error.path == "/".join(path)
    eager, _ = outcome(lambda p: net(p, floats(2, 4), state=state), wrong)
    assert str(eager) == str(error)


def test_more_than_five_hundred_distinct_wrong_inputs_are_refused():
    """Of the tables of leaf layers, only the wrong shapes are counted again."""
    for name in (
        "parallel",
        "bilinear",
        "weight_norm",
        "lora",
        "residual",
        "serial",
    ):  # if run alone
        if not any(case.startswith(f"{name}:") for case in REFUSED):
            sum(map(refused, wrong_calls(name)))
    distinct = len(REFUSED)
    for name in table.TABLE:
        layer, legal = table.build(name)
        params, state = zeros_of(layer.specs(legal))

        def call(x, layer=layer, params=params, state=state):
            return layer(params, x, state=state)

        for shape in set(support.shape_mutations(legal)):
            error, _ = outcome(jax.eval_shape, call, floats(*shape))
            distinct += error is not None
    assert distinct - len(REFUSED) >= 100
    assert distinct >= 500
