"""Recurrent layers of PyTorch and Flax, with their values in fnn, compute what they did there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import convert, errors, tree
from tests.support import asarray, assert_close, assert_teaches, refused

B, T, C, H = 2, 5, 3, 4
LAYERS = {"lstm": fnn.lstm, "gru": fnn.gru, "simple_rnn": fnn.simple_rnn}
RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def values_like(specs):
    return jax.tree.map(lambda a: asarray(draw(*a.shape)), specs)


def values(net, *xs):
    return values_like(jax.eval_shape(lambda: net.init(jax.random.key(0), *xs))[0])


def same(a, b):
    assert not tree.compare(a, b), tree.compare(a, b)


# --- PyTorch


def torch_module(kind, channels=C, **options):
    torch = pytest.importorskip("torch")
    names = {"lstm": "LSTM", "gru": "GRU", "simple_rnn": "RNN"}
    module = getattr(torch.nn, names[kind])(channels, H, batch_first=True, **options)
    with torch.no_grad():  # its own first values are small
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(draw(*parameter.shape)))
    return module


def run_torch(module, x):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        y = module(torch.from_numpy(x))
    return (y[0] if isinstance(y, tuple) else y).numpy()


def load_torch(module, state_dict):
    torch = pytest.importorskip("torch")
    module.load_state_dict({name: torch.from_numpy(a) for name, a in state_dict.items()})


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_recurrent_layers_of_torch(kind, layers, bidirectional):
    """There, back, and there again: the same outputs, and the same arrays to the bit."""
    module = torch_module(kind, num_layers=layers, bidirectional=bidirectional)
    net = LAYERS[kind](H, layers=layers, bidirectional=bidirectional)
    x, wanted = (x := draw(B, T, C)), run_torch(module, x)
    params, state = convert.from_torch(net, module.state_dict(), x.shape)
    assert_close(jax.jit(net)(params, x), wanted, tolerance=1e-5)
    back = convert.to_torch(net, params, state, x.shape)
    assert list(back) == list(module.state_dict())
    load_torch(module, back)
    assert_close(run_torch(module, x), wanted, tolerance=1e-5)
    same(convert.from_torch(net, back, x.shape), (params, state))
    same(convert.from_torch(net, module.state_dict(), x.shape), (params, state))


def test_what_the_biases_of_torch_become():
    """Those that are only added are added up; that within the reset of a GRU stays apart."""
    module = torch_module("gru")
    first, second = module.bias_ih_l0.detach().numpy(), module.bias_hh_l0.detach().numpy()
    params, _ = convert.from_torch(fnn.gru(H), module.state_dict(), (1, T, C))
    rz = slice(0, 2 * H)
    np.testing.assert_array_equal(params["bias"][rz], first[rz] + second[rz])
    np.testing.assert_array_equal(params["bias"][2 * H :], first[2 * H :])
    np.testing.assert_array_equal(params["recurrent_bias"], second[2 * H :])
    back = convert.to_torch(fnn.gru(H), params, {}, (1, T, C))
    assert not back["bias_hh_l0"][rz].any()
    params, _ = convert.from_torch(fnn.lstm(H), torch_module("lstm").state_dict(), (1, T, C))
    assert not convert.to_torch(fnn.lstm(H), params, {}, (1, T, C))["bias_hh_l0"].any()


@pytest.mark.parametrize("kind", LAYERS)
def test_recurrent_layers_of_torch_without_biases(kind):
    module = torch_module(kind, bias=False)
    net, x = LAYERS[kind](H, use_bias=False), draw(B, T, C)
    params, state = convert.from_torch(net, module.state_dict(), x.shape)
    assert_close(net(params, x), run_torch(module, x), tolerance=1e-5)
    theirs = {name: a.numpy() for name, a in module.state_dict().items()}
    same(convert.to_torch(net, params, state, x.shape), theirs)


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # that they are slow
def test_a_projected_lstm_of_torch():
    module, x = torch_module("lstm", num_layers=2, proj_size=3), draw(B, T, C)
    net = fnn.lstm(H, layers=2, projection=3)
    params, state = convert.from_torch(net, module.state_dict(), x.shape)
    assert_close(jax.jit(net)(params, x), run_torch(module, x), tolerance=1e-5)
    back = convert.to_torch(net, params, state, x.shape)
    assert list(back) == list(module.state_dict())
    same(convert.from_torch(net, back, x.shape)[0], params)
    module = torch_module("lstm", proj_size=3)
    cell = fnn.rnn(fnn.cells.lstm(H, projection=3))
    params, _ = convert.from_torch(cell, module.state_dict(), x.shape)
    assert_close(cell(params, x), run_torch(module, x), tolerance=1e-5)


def test_other_ways_to_build_the_same_layer():
    """A cell in `rnn`, in `bidirectional` and in `stack` is a layer of PyTorch as well."""
    module, x = torch_module("gru"), draw(B, T, C)
    wanted, state_dict = run_torch(module, x), module.state_dict()
    for net in (
        fnn.rnn(fnn.cells.gru(H)),
        fnn.rnn(fnn.cells.serial(jnp.asarray, fnn.cells.gru(H))),
    ):
        params, state = convert.from_torch(net, state_dict, x.shape)
        assert_close(net(params, x), wanted, tolerance=1e-5)
        back = convert.to_torch(net, params, state, x.shape)
        same(convert.from_torch(net, back, x.shape)[0], params)
    module = torch_module("lstm", bidirectional=True)
    net = fnn.bidirectional(fnn.cells.lstm(H))
    params, _ = convert.from_torch(net, module.state_dict(), x.shape)
    assert_close(net(params, x), run_torch(module, x), tolerance=1e-5)


def test_a_network_of_torch_with_recurrent_layers():
    """Joined axes of images go into a layer over time; names and order pair as ever."""
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(2, 3, 3, padding=1)
            self.encoder = torch_module("lstm", 3 * 4 * 2, num_layers=2, bidirectional=True)
            self.decoder = torch_module("gru", 2 * H)
            self.head = torch.nn.Linear(H, 2)

        def forward(self, x):  # [B, T, C, H, W]
            h = self.conv(x.flatten(0, 1)).flatten(1).unflatten(0, x.shape[:2])
            return self.head(self.decoder(self.encoder(h)[0])[0][:, -1])

    model, x = Model(), draw(B, T, 2, 4, 2)
    wanted, inputs = run_torch(model, x), np.moveaxis(x, 2, -1)
    net = fnn.serial(
        fnn.conv(3, (3, 3), padding=1),
        fnn.flatten(3),
        fnn.lstm(H, layers=2, bidirectional=True),
        fnn.gru(H, return_sequence=False),
        fnn.dense(2),
    )
    params, state = convert.from_torch(net, model.state_dict(), inputs.shape)
    assert_close(jax.jit(net)(params, inputs), wanted, tolerance=1e-5)
    names = {"conv1": "conv", "lstm1": "encoder", "gru1": "decoder", "dense1": "head"}
    shuffled = dict(sorted(model.state_dict().items()))
    same(convert.from_torch(net, shuffled, inputs.shape, names=names)[0], params)
    load_torch(model, convert.to_torch(net, params, state, inputs.shape, names=names))
    assert_close(run_torch(model, x), wanted, tolerance=1e-5)


# --- Flax


def linen_cell(kind, **options):
    linen = pytest.importorskip("flax.linen")
    names = {"lstm": "OptimizedLSTMCell", "gru": "GRUCell", "simple_rnn": "SimpleCell"}
    return getattr(linen, names[kind])(H, **options)


@pytest.mark.parametrize("kind", LAYERS)
def test_recurrent_layers_of_linen(kind):
    linen = pytest.importorskip("flax.linen")
    module, x = linen.RNN(linen_cell(kind)), draw(B, T, C)
    variables = values_like(jax.eval_shape(module.init, jax.random.key(0), x))
    net, names = LAYERS[kind](H), {"": "cell"}
    params, state = convert.from_flax(net, variables, x.shape)
    wanted = jax.jit(module.apply)(variables, x)
    assert_close(net(params, x), wanted, tolerance=1e-5)
    same(convert.to_flax(net, params, state, x.shape, names=names), variables)


def test_the_plain_lstm_cell_of_linen_has_the_same_arrays():
    linen = pytest.importorskip("flax.linen")
    module, x = linen.RNN(linen.LSTMCell(H)), draw(B, T, C)
    variables = values_like(jax.eval_shape(module.init, jax.random.key(0), x))
    params, _ = convert.from_flax(fnn.lstm(H), variables, x.shape)
    assert_close(fnn.lstm(H)(params, x), module.apply(variables, x), tolerance=1e-5)


def test_a_network_of_linen_with_recurrent_layers():
    """Cells of equal shapes go by number; each layer and direction is a cell of its own."""
    linen = pytest.importorskip("flax.linen")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            for _ in range(2):
                ways = [linen.RNN(linen_cell("lstm")) for _ in range(2)]
                x = linen.Bidirectional(*ways)(x)
            x = linen.RNN(linen_cell("gru"))(x)
            return linen.Dense(2)(linen.RNN(linen_cell("simple_rnn"))(x))

    model, x = Model(), draw(B, T, C)
    variables = values_like(jax.eval_shape(model.init, jax.random.key(0), x))
    net = fnn.serial(
        fnn.lstm(H, layers=2, bidirectional=True), fnn.gru(H), fnn.simple_rnn(H), fnn.dense(2)
    )
    params, state = convert.from_flax(net, variables, x.shape)
    wanted = jax.jit(model.apply)(variables, x)
    assert_close(jax.jit(net)(params, x), wanted, tolerance=1e-5)
    ways = ("lstm1/forward", "lstm1/backward", "lstm2/forward", "lstm2/backward")
    names = {f"lstm1/{way}": f"OptimizedLSTMCell_{i}" for i, way in enumerate(ways)}
    names |= {"gru1": "GRUCell_0", "simple_rnn1": "SimpleCell_0", "dense1": "Dense_0"}
    same(convert.to_flax(net, params, state, x.shape, names=names), variables)
    ours = convert.to_flax(net, params, state, x.shape)
    same(convert.from_flax(net, ours, x.shape)[0], params)


@pytest.mark.parametrize("name", ["OptimizedLSTMCell", "LSTMCell", "GRUCell", "SimpleCell"])
def test_recurrent_layers_of_nnx(name):
    nnx = pytest.importorskip("flax.nnx")
    kind = {"GRUCell": "gru", "SimpleCell": "simple_rnn"}.get(name, "lstm")
    model = nnx.RNN(getattr(nnx, name)(C, H, rngs=nnx.Rngs(0)))
    states, x = nnx.state(model, nnx.Param), draw(B, T, C)
    pure = values_like(nnx.to_pure_dict(states))
    nnx.replace_by_pure_dict(states, pure)
    nnx.update(model, states)
    net = LAYERS[kind](H)
    params, state = convert.from_nnx(net, pure, x.shape)
    assert_close(net(params, x), model(x), tolerance=1e-5)
    back = convert.to_nnx(net, params, state, x.shape, names={"": "cell"})
    if name != "LSTMCell":  # whose arrays come back as those of OptimizedLSTMCell
        same(back, pure)
    same(convert.from_nnx(net, back, x.shape)[0], params)


def test_cells_of_nnx_of_many_kinds_in_one_model():
    """By the width of their arrays: all have the same two parts."""
    x = (1, T, C)
    net = fnn.serial(fnn.simple_rnn(H), fnn.lstm(H), fnn.gru(H, use_bias=False), fnn.lstm(2))
    params = values(net, x)
    pure = convert.to_nnx(net, params, {}, x, names={"lstm1": "a/cell", "gru1": "b/cell"})
    assert set(pure["a"]["cell"]) == {"dense_i", "dense_h"}
    same(convert.from_nnx(net, pure, x)[0], params)


# --- what is refused


def torch_arrays(kind, **changed):
    gates = {"lstm": 4, "gru": 3, "simple_rnn": 1}[kind]
    arrays = {
        "rnn.weight_ih_l0": draw(gates * H, C),
        "rnn.weight_hh_l0": draw(gates * H, H),
        "rnn.bias_ih_l0": draw(gates * H),
        "rnn.bias_hh_l0": draw(gates * H),
    }
    arrays |= {f"rnn.{name}": a for name, a in changed.items()}
    return {name: a for name, a in arrays.items() if a is not None}


def linen_arrays(**changed):
    gates = {f"i{gate}": {"kernel": draw(C, H)} for gate in "ifgo"}
    gates |= {f"h{gate}": {"kernel": draw(H, H), "bias": draw(H)} for gate in "ifgo"}
    return {"params": {"cell": gates | changed}}


SHAPE, IMAGES = (1, T, C), (1, T, 2, 2, C)
WRONG = {  # a call, where it is, what is said
    "torch: a missing bias": (
        lambda: convert.from_torch(fnn.lstm(H), torch_arrays("lstm", bias_hh_l0=None)
                                   | {"rnn.bias_ih_l0": draw(H)}, SHAPE),
        "lstm",
        "rnn.bias_ih_l0 (16,) for bias (16,)",
    ),
    "torch: biases of two shapes": (
        lambda: convert.from_torch(fnn.lstm(H), torch_arrays("lstm", bias_hh_l0=draw(H)), SHAPE),
        "from_torch",
        "(16,) and (4,)",
    ),
    "torch: more layers": (
        lambda: convert.from_torch(
            fnn.lstm(H), torch_arrays("lstm", weight_ih_l1=draw(4 * H, H)), SHAPE
        ),
        "lstm",
        "also rnn.weight_ih_l1",
    ),
    "torch: fewer layers": (
        lambda: convert.from_torch(fnn.lstm(H, layers=2), torch_arrays("lstm"), SHAPE),
        "lstm",
        "rnn.weight_ih_l1 for lstm2/kernel",
    ),
    "torch: another kind": (
        lambda: convert.from_torch(fnn.gru(H), torch_arrays("lstm"), SHAPE),
        "gru",
        "rnn.bias_hh_l0 for recurrent_bias",
    ),
    "torch: reset before": (
        lambda: convert.from_torch(fnn.gru(H, reset_after=False), torch_arrays("gru"), SHAPE),
        "gru",
        "reset_after=True",
    ),
    "torch: peepholes": (
        lambda: convert.from_torch(fnn.lstm(H, peepholes=True), torch_arrays("lstm"), SHAPE),
        "lstm",
        "lstm with bias, kernel, peephole",
    ),
    "torch: another cell": (
        lambda: convert.from_torch(fnn.rnn(fnn.cells.mgu(H)), torch_arrays("gru"), SHAPE),
        "rnn",
        "rnn with bias, kernel, recurrent_kernel",
    ),
    "torch: of images that are flattened at once": (
        lambda: convert.from_torch(
            fnn.serial(fnn.flatten(3), fnn.lstm(H)), torch_arrays("lstm"), IMAGES
        ),
        "lstm1",
        'flattened="CHW"',
    ),
    "flax: another shape of one gate": (
        lambda: convert.from_flax(fnn.lstm(H), linen_arrays(ig={"kernel": draw(C, 2)}), SHAPE),
        "cell",
        "one shape of kernel for all gates",
    ),
    "flax: one bias too many": (
        lambda: convert.from_flax(
            fnn.lstm(H), linen_arrays(ig={"kernel": draw(C, H), "bias": draw(H)}), SHAPE
        ),
        "lstm",
        "also cell/ig/bias",
    ),
    "flax: no such gate": (
        lambda: convert.from_flax(fnn.gru(H), linen_arrays(), SHAPE),
        "from_flax",
        "gru (",
    ),
    "nnx: a bias that it has not": (
        lambda: convert.to_nnx(fnn.gru(H), values(fnn.gru(H), SHAPE), {}, SHAPE),
        "gru",
        "a recurrent_bias of zeros",
    ),
    "keras: no such layer": (
        lambda: convert.from_keras(fnn.lstm(H), [], SHAPE),
        "lstm",
        "a layer of a kind",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs(name):
    call, where, said = WRONG[name]
    error = refused(call)
    assert_teaches(error, where)
    assert said in str(error)
    assert isinstance(error, errors.ParamsError)
