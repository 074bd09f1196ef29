import copy
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.core import errors
from tests.optim.table import ROWS

G = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]])}


@fnn.builder
def doubled(learning_rate, *, nesterov=False):
    return fnn.optim.chain(fnn.optim.scale(2.0), fnn.optim.sgd(learning_rate, 0.9, nesterov))


def updates(tx):
    return tx.update(G, tx.init(G), G)[0]


def test_what_a_builder_makes_knows_the_call():
    tx = doubled(0.1, nesterov=True)
    assert tx.origin.builder is doubled
    assert dict(tx.origin.given()) == {"learning_rate": 0.1, "nesterov": True}
    net = fnn.dense(3, use_bias=False)
    assert dict(net.origin.given()) == {"features": 3, "use_bias": False}
    init, update = tx  # still a pair
    assert callable(init) and callable(update)
    assert str(fnn.initializers.variance_scaling(2.0, mode="fan_out")) == (
        "variance_scaling(2.0, mode='fan_out')"
    )


def test_a_builder_that_returns_what_it_got_leaves_it_alone():
    @fnn.builder
    def same(layer):
        return layer

    net = fnn.dense(3)
    assert same(net) is net and net.origin.builder is fnn.dense


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if errors.is_builder(row.build)])
def test_optimizers_are_pickled_by_the_calls_that_built_them(name):
    tx = ROWS[name].build(**ROWS[name].usual)
    again = pickle.loads(pickle.dumps(tx))
    assert str(again.origin) == str(tx.origin)
    assert copy.copy(tx) is tx and copy.deepcopy([tx])[0] is tx


@pytest.mark.parametrize(
    "tx",
    [
        fnn.optim.adamw(fnn.optim.schedules.warmup_cosine(0.0, 0.1, 2, 10), weight_decay=0.1),
        fnn.optim.tunable(fnn.optim.sgd)(0.1, momentum=0.9),
        fnn.optim.chain(fnn.optim.clip_by_global_norm(1.0), doubled(0.1)),
        fnn.optim.partition({"a": fnn.optim.sgd(0.1), "b": fnn.optim.scale(0.0)}, {"w": "a"}),
    ],
    ids=["schedule", "tunable", "chain", "partition"],
)
def test_a_pickled_optimizer_gives_the_same_updates(tx):
    again = pickle.loads(pickle.dumps(tx))
    np.testing.assert_array_equal(updates(again)["w"], updates(tx)["w"])


def test_a_pickled_network_computes_the_same_in_another_process(tmp_path):
    net = fnn.serial(fnn.dense(3), jax.nn.gelu, fnn.remat(fnn.dense(2)))
    params, _ = net.init(jax.random.key(0), (1, 4))
    x = jnp.linspace(-1, 1, 8).reshape(2, 4)
    with open(tmp_path / "net", "wb") as file:
        pickle.dump((net, jax.tree.map(np.asarray, params)), file)
    code = (
        "import pickle, sys, numpy as np\n"
        "net, params = pickle.load(open(sys.argv[1], 'rb'))\n"
        "x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)\n"
        "print(np.asarray(net(params, x)).tolist())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "net")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    np.testing.assert_allclose(eval(done.stdout), net(params, x), rtol=1e-5)


def test_transforms_by_hand_are_pickled_if_their_functions_have_names():
    tx = fnn.optim.Transform(start, halve)
    assert pickle.loads(pickle.dumps(tx)) == tx
    with pytest.raises(errors.InputError, match="<lambda>"):
        pickle.dumps(fnn.optim.chain(fnn.optim.Transform(start, lambda g, s, p=None: (g, s))))


def start(params):
    return ()


def halve(grads, opt_state, params=None):
    return jax.tree.map(lambda g: g / 2, grads), opt_state
