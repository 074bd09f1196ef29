import dataclasses
import functools
import importlib
import json
import pickle
import re
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.core import errors
from tests.contracts.layers import LAYERS
from tests.gallery.support import EXAMPLES

KEY = jax.random.key(0)
OWN = ("tests",)  # modules that a description may name


@fnn.builder
def mlp(width, *, act=jax.nn.relu):
    return fnn.serial(fnn.dense(width), act, lambda x: 2 * x, head=fnn.dense(2))


@fnn.compose(a=fnn.dense(3), b=fnn.dense(3))
def block(f, x):  # [..., 3]
    return f.b(jnp.tanh(f.a(x)))


def body(f, x):
    return 2 * f.a(x)


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y, equal_nan=True) and x.dtype == y.dtype
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def same(net, again, *xs):
    """Two networks with equal declarations, first values and outputs, to the bit."""
    assert repr(net) == repr(again)
    values = net.init(KEY, *xs)
    assert equal(values, again.init(KEY, *xs))
    xs = [jnp.ones(x) if isinstance(x, tuple) else x for x in xs]
    run = [jax.jit(one.apply)(*values, *xs)[0] for one in (net, again)]
    assert equal(*run)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "ensemble"])
def test_every_layer_is_built_again_with_the_same_declarations(name):
    layer, *xs = LAYERS[name]
    again = fnn.build(fnn.describe(layer), allow=OWN)
    assert repr(again) == repr(layer) and again.name == layer.name
    declared = [re.sub(" at 0x[0-9a-f]+", "", str(one.specs(*xs))) for one in (layer, again)]
    assert declared[0] == declared[1]
    assert fnn.describe(again) == fnn.describe(layer)
    assert not fnn.diff(layer, again)
    assert repr(pickle.loads(pickle.dumps(layer))) == repr(layer)


def test_a_network_is_built_again_to_the_bit():
    net = fnn.serial(
        fnn.conv(4, (3, 3), kernel_init=fnn.initializers.he_normal()),
        fnn.batch_norm(),
        functools.partial(jax.nn.gelu, approximate=False),
        fnn.flatten(3),
        fnn.residual(mlp(4, act=jnp.tanh), fnn.dense(2)),
        fnn.dense(3, bias_init=fnn.initializers.constant(np.array([0.1, np.inf, 2.0], np.float32))),
        block,
    )
    same(net, fnn.build(fnn.describe(net), allow=OWN), (2, 4, 4, 1))
    same(net, pickle.loads(pickle.dumps(net)), (2, 4, 4, 1))


def test_a_description_reads_as_the_code_that_built_the_network():
    text = fnn.describe(fnn.serial(fnn.dense(8, use_bias=False), jax.nn.relu, head=fnn.dense(2)))
    assert json.loads(text)["network"] == {
        "build": "fnn.serial",
        "args": [
            {"build": "fnn.dense", "options": {"features": 8, "use_bias": False}},
            {"import": "jax.nn.relu"},
        ],
        "options": {"head": {"build": "fnn.dense", "options": {"features": 2}}},
    }


def test_options_of_every_kind_come_back_as_they_were():
    options = {
        "numbers": (1, 2.5, -0.0, float("inf"), True, None, 2**70),
        "text": "é\n",
        "nested": [1, (2, [3])],
        "names": {"a": (1,), 2: "b"},
        "dtypes": (jnp.bfloat16, np.dtype("float32"), jnp.float16),
        "arrays": (np.arange(6, dtype=np.int8).reshape(2, 3), np.float32(0.1), jnp.ones(2)),
        "key": jax.random.key(3),
    }
    got = dict(fnn.build(fnn.describe(keeps(options)), allow=OWN).origin.given())["options"]
    assert got["numbers"] == options["numbers"] and str(got["numbers"][2]) == "-0.0"
    assert got["text"] == options["text"] and got["names"] == options["names"]
    assert got["nested"] == [1, (2, [3])]
    assert got["dtypes"] == tuple(map(jnp.dtype, options["dtypes"]))
    assert equal(got["arrays"], options["arrays"])
    assert isinstance(got["arrays"][0], np.ndarray) and isinstance(got["arrays"][2], jax.Array)
    assert equal(jax.random.bits(got["key"]), jax.random.bits(options["key"]))


@fnn.builder
def keeps(options):
    return fnn.dense(1)


def test_bodies_are_named_and_changed_sublayers_described():
    assert json.loads(fnn.describe(block))["network"] == {"import": f"{__name__}.block"}
    wider = block.map(lambda path, layer: fnn.dense(5) if path == "a" else layer)
    same(wider, fnn.build(fnn.describe(wider), allow=OWN), (2, 3))
    again = wider.map(lambda path, layer: fnn.dense(4) if path == "b" else layer)
    same(again, fnn.build(fnn.describe(again), allow=OWN), (2, 3))
    assert fnn.describe(again).count('"over"') == 1
    plain = fnn.compose(a=fnn.dense(3))(body)
    same(plain, fnn.build(fnn.describe(plain), allow=OWN), (2, 3))
    wrapped = fnn.remat(fnn.serial(fnn.dense(3), fnn.dense(3)))
    swapped = wrapped.map(lambda path, layer: block if path == "dense1" else layer)
    same(swapped, fnn.build(fnn.describe(swapped), allow=OWN), (2, 3))


def test_what_has_no_name_is_refused_by_its_path():
    def inner(f, x):
        return f.a(x)

    local = fnn.compose(a=fnn.dense(1))(inner)
    by_hand = fnn.Layer("mine", block.specs, block.apply)
    changed = fnn.wrap(fnn.dense(2), lambda layer, *args, **mode: layer.apply(*args, **mode))
    cases = [
        (fnn.serial(body=fnn.serial(fnn.dense(1), lambda x: x)), "body/lambda_1: .*<lambda>"),
        (fnn.serial(a=fnn.dense(1, kernel_init=lambda k, s, d: jnp.ones(s))), "a/kernel_init: "),
        (fnn.serial(fnn.dense(1), b=local), "b: .*inner.*@fnn.builder"),
        (fnn.residual(by_hand), "layer: .*the layer mine, made by hand.*@fnn.builder"),
        (fnn.serial(c=changed), "c/apply: .*<lambda>"),
    ]
    for net, message in cases:
        with pytest.raises(errors.InputError, match=message):
            fnn.describe(net)
        with pytest.raises(errors.InputError, match=message):
            pickle.dumps(net)


def test_a_layer_whose_fields_were_replaced_by_hand_is_refused():
    net = dataclasses.replace(fnn.dense(3), apply=block.apply)
    with pytest.raises(errors.InputError, match="expected a layer as its builder made it, got den"):
        fnn.describe(fnn.serial(net))


def test_an_initializer_whose_fields_were_replaced_by_hand_is_refused():
    for init, change in (
        (fnn.initializers.he_normal(), {"scale": 9.0}),
        (fnn.initializers.constant(np.ones(3)), {"value": np.zeros(3)}),
    ):
        net = fnn.dense(3, kernel_init=dataclasses.replace(init, **change))
        with pytest.raises(errors.InputError, match="kernel_init: .*whose fields were replaced"):
            fnn.describe(net)


class Pair(NamedTuple):
    a: int
    b: object = None


def test_numbers_of_numpy_and_named_tuples_keep_their_kind():
    options = {"n": np.int64(5), "pair": Pair(2, jnp.tanh), "big": np.arange(3, dtype=">f4")}
    got = dict(fnn.build(fnn.describe(keeps(options)), allow=OWN).origin.given())["options"]
    assert type(got["n"]) is np.int64 and got["n"] == 5
    assert got["pair"] == options["pair"] and type(got["pair"]) is Pair
    assert got["big"].tolist() == [0, 1, 2]
    net = fnn.dense(3, kernel_init=fnn.initializers.variance_scaling(np.float64(2.7)))
    same(net, fnn.build(fnn.describe(net)), (2, 3))
    with pytest.raises(errors.InputError, match="expected a function that can be imported, or"):
        fnn.describe(keeps({"text": np.array(["a"])}))


def test_options_that_differ_inside_a_dict_or_a_schedule_are_told():
    box = fnn.optim.constraints.box
    for a, b in (
        (fnn.serial(box(0.0, 1.0)), fnn.serial(box(0.0, 0.2))),
        (keeps({"w": 2.0}), keeps({"w": 3.0})),
    ):
        assert fnn.diff(a, b) and not fnn.diff(a, a)


def test_traced_options_are_refused():
    def run(rate):
        fnn.describe(fnn.serial(fnn.dropout(rate)))
        return rate

    with pytest.raises(errors.InputError, match="traced; describe the network outside of jit"):
        jax.jit(run)(0.5)


NAMES = [
    "autoencoder", "binary_table", "char_lm", "diffusion", "distillation", "functions", "gan",
    "gpt", "graph", "lstm_sequences", "mnist_cnn", "resnet_cifar", "vae", "vit", "xor",
]  # fmt: skip


def test_the_networks_of_the_examples_are_described(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    count = 0
    for name in NAMES:
        module = importlib.import_module(name)
        nets = [net for net in vars(module).values() if isinstance(net, fnn.Layer)]
        nets += [module.resnet18(10, 8)] if name == "resnet_cifar" else []
        nets += [module.network(2)] if name == "xor" else []
        for net in nets:
            again = fnn.build(fnn.describe(net), allow=(name,))
            assert repr(again) == repr(net) and not fnn.diff(net, again)
            count += 1
        del sys.modules[name]
    assert count > 20


# --- hostile and damaged text


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "subprocess.run", "builtins.eval", "fnn.core.durable.os.system",
        "jax.numpy.load", "jax.numpy.save", "jax.numpy.frompyfunc", "jax.debug.callback",
        "jax.pure_callback", "fnn.checkpoint.save", "fnn.core.plain.imported", "jax._src.api.jit",
        "fnn.core.errors.jax.numpy.load", "fnn.data.load", "pickle.loads", "this", "antigravity",
        "fnn.layers.dense._x", "fnn.log.__main__", "jax.numpy.linalg.__builtins__", "a b", "", 3,
    ],
)  # fmt: skip
def test_no_other_function_is_reached(name):
    for network in (
        {"build": name, "args": ["x"]},
        {"build": "fnn.serial", "args": [{"import": name}]},
        {"partial": {"import": name}, "args": ["x"], "options": {}},
        {"build": "fnn.compose", "args": [{"import": name}]},
    ):
        text = json.dumps({"format": "fnn network", "version": 1, "network": network})
        with pytest.raises(errors.DescriptionError):
            fnn.build(text)


def test_an_allowed_module_lends_nothing_that_it_has_imported(tmp_path, monkeypatch):
    text = "import os\nfrom subprocess import check_output\ndef act(x): return x\n"
    (tmp_path / "lender.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    touch = [{"list": ["touch", str(tmp_path / "touched")]}]
    names = ["check_output", "os.system", "act.__builtins__.__getitem__", "act.__globals__.get"]
    for name in names:
        for network in (
            {"build": f"lender.{name}", "args": touch},
            {"build": "fnn.serial", "args": [{"import": f"lender.{name}"}]},
        ):
            said = json.dumps({"format": "fnn network", "version": 1, "network": network})
            with pytest.raises(errors.DescriptionError):
                fnn.build(said, allow=("lender",))
    said = {"build": "lender.act", "args": [1]}, {"build": "jax.numpy.sqrt", "args": [1.0]}
    for network in said:  # no builders: nothing is called
        text = json.dumps({"format": "fnn network", "version": 1, "network": network})
        with pytest.raises(errors.DescriptionError, match="expected a builder, got"):
            fnn.build(text, allow=("lender",))
    assert not (tmp_path / "touched").exists()


def test_nothing_is_imported_that_is_not_allowed():
    text = fnn.describe(block)
    with pytest.raises(errors.DescriptionError, match=r"allow=\('tests',\)"):
        fnn.build(text)
    code = (
        "import fnn, sys\n"
        f"try: fnn.build({text.replace('tests.description', 'antigravity.x')!r})\n"
        "except fnn.FnnError: pass\n"
        "assert 'antigravity' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(errors.OptionError, match="a tuple of modules"):
        fnn.build(text, allow="tests")


def test_damaged_text_raises_one_error():
    text = fnn.describe(fnn.serial(fnn.conv(4, (3, 3)), jax.nn.relu, fnn.dense(3)))
    random = np.random.default_rng(0)
    for _ in range(200):
        cut = list(text)
        for at in random.integers(len(cut), size=random.integers(1, 4)):
            cut[at] = chr(random.integers(32, 127))
        try:
            fnn.build("".join(cut))  # a digit more or less is another network
        except errors.DescriptionError:
            pass
    bad = ["", "[]", "{}", "null", text[:-30], "[" * 10**5, text.replace("1,", "9,", 1)]
    deep = '{"build":"fnn.serial","args":[' * 300 + "3" + "]}" * 300
    bad.append(f'{{"format": "fnn network", "version": 1, "network": {deep}}}')
    options = '{"build": "fnn.dense", "options": {"features": 3, "kernel": 4}}'
    bad.append(f'{{"format": "fnn network", "version": 1, "network": {options}}}')
    for one in bad:
        with pytest.raises(errors.DescriptionError, match="^build: expected"):
            fnn.build(one)


# --- differences


def test_differences_are_named_by_layer_and_option():
    a = fnn.serial(fnn.dense(8), jax.nn.relu, mlp(4), fnn.remat(fnn.serial(fnn.dense(2))))
    b = fnn.serial(
        fnn.dense(8, use_bias=False), jnp.tanh, mlp(5), fnn.remat(fnn.serial(fnn.dense(3)))
    )
    assert list(map(str, fnn.diff(a, b))) == [
        "dense1.use_bias: True -> False",
        "relu_1: relu -> None",
        "serial1.width: 4 -> 5",
        "serial2/dense1.features: 2 -> 3",
        "tanh_1: None -> tanh",
    ]
    assert fnn.diff(a, a) == []
    assert [one.path for one in fnn.diff(fnn.dense(1), fnn.dropout(0.1))] == [""]
    changed = a.map(lambda path, layer: fnn.dense(9) if path == "dense1" else layer)
    assert [(one.path, one.a, one.b) for one in fnn.diff(a, changed)] == [("dense1.features", 8, 9)]
    first, second = (fnn.serial(f) for f in (lambda x: x, lambda x: 2 * x))
    assert fnn.diff(first, first) == [] and len(fnn.diff(first, second)) == 1


def test_a_function_around_one_of_a_builder_is_not_taken_for_it():
    box = fnn.optim.constraints.box(0.0, 0.5)

    @functools.wraps(box)
    def doubled(x):
        return 2 * box(x)

    for fn in (doubled, jax.jit(box)):
        with pytest.raises(errors.InputError, match="box"):
            fnn.describe(fnn.serial(fn))
    same(fnn.serial(box), fnn.build(fnn.describe(fnn.serial(box))), (3,))


def test_what_is_changed_after_the_call_is_not_described():
    size = [3, 3]
    options = {"numbers": size, "array": np.ones(2)}
    net, conv = keeps(options), fnn.conv(2, size)
    size[0] = 5
    options["array"][:] = 7
    got = dict(fnn.build(fnn.describe(net), allow=OWN).origin.given())["options"]
    assert got["numbers"] == [3, 3] and got["array"].tolist() == [1, 1]
    assert '{"list": [3, 3]}' in fnn.describe(conv)


def test_networks_nest_deeply():
    net = fnn.dense(1)
    for _ in range(150):
        net = fnn.serial(net)
    assert fnn.describe(fnn.build(fnn.describe(net))) == fnn.describe(net)


@dataclasses.dataclass(frozen=True)
class Scaled:
    fn: object

    def __post_init__(self):
        assert callable(self.fn)

    def __call__(self, x):
        return 2 * self.fn(x)


def test_dataclasses_are_calls_of_their_classes():
    net = fnn.serial(Scaled(jnp.tanh))
    same(net, fnn.build(fnn.describe(net), allow=OWN), (3,))
    same(net, pickle.loads(pickle.dumps(net)), (3,))


def scale_specs(x):
    return {"scale": fnn.Param(x.shape[-1:], fnn.initializers.normal(1.0))}, {}


def scale_apply(params, state, x, *, key, train):
    return x * params["scale"], state


def test_a_leaf_by_hand_is_described_if_its_functions_have_names():
    net = fnn.serial(fnn.leaf("scale", scale_specs, scale_apply), jnp.tanh)
    same(net, fnn.build(fnn.describe(net), allow=OWN), (2, 3))


def test_a_network_over_devices_is_described_as_the_network():
    net = fnn.serial(fnn.dense(8), jax.nn.relu, block)
    placed = fnn.sharding.plan(fnn.sharding.mesh(data=-1), net, fnn.optim.sgd(0.1), (8, 3))
    assert fnn.describe(fnn.sharding.constrained(net, placed)) == fnn.describe(net)
