import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.core import errors

NET = fnn.serial(fnn.dense(3), fnn.batch_norm(), jax.nn.relu, fnn.dense(2))
X = jnp.linspace(-1, 1, 24).reshape(6, 4)
LABELS = jnp.arange(6) % 2
TX = fnn.optim.sgd(0.1)


def trained(directory, net=NET, **options):
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), TX)
    start = fnn.train.init(net, TX, jax.random.key(0), X)
    keeper = fnn.checkpoint.Keeper(directory, **options)
    data = {"image": X, "label": LABELS}
    run = {"epochs": 2, "batch_size": 3, "callbacks": [keeper], "progress": False}
    return fnn.train.fit(step, start, data, **run)[0]


def test_a_run_is_loaded_without_its_script(tmp_path):
    ts = trained(tmp_path, every=1)
    net, params, state = fnn.load(tmp_path)
    wanted = NET(ts.params, X, state=ts.state)
    np.testing.assert_array_equal(net(params, X, state=state), wanted)
    code = (
        "import fnn, sys, numpy as np\n"
        "net, params, state = fnn.load(sys.argv[1])\n"
        "x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)\n"
        "print(np.asarray(net(params, x, state=state)).tolist())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    np.testing.assert_allclose(eval(done.stdout), wanted, rtol=1e-5, atol=1e-6)
    older = fnn.load(tmp_path / "step-2")
    assert not np.array_equal(older.params["dense1"]["kernel"], params["dense1"]["kernel"])


@pytest.mark.parametrize("tree", ["params", "both", "train_state"])
def test_every_form_of_a_checkpoint_is_loaded(tmp_path, tree):
    ts = fnn.train.init(NET, TX, jax.random.key(0), X)
    both = {"params": ts.params, "state": ts.state}
    held = {"params": ts.params, "both": both, "train_state": ts}[tree]
    fnn.checkpoint.save(tmp_path / "one", held, net=NET)
    net, params, state = fnn.load(tmp_path / "one")
    assert repr(net) == repr(NET)
    jax.tree.map(np.testing.assert_array_equal, params, ts.params)
    jax.tree.map(np.testing.assert_array_equal, state, {} if tree == "params" else ts.state)


def test_a_network_that_cannot_be_described_costs_no_checkpoint(tmp_path):
    net = fnn.serial(fnn.dense(3), lambda x: x, fnn.dense(2))
    ts = trained(tmp_path / "run", net)
    kept = fnn.checkpoint.Keeper(tmp_path / "run").restore(ts)
    jax.tree.map(np.testing.assert_array_equal, kept.params, ts.params)
    with pytest.raises(errors.CheckpointError, match="could not be described: .*lambda_1: "):
        fnn.load(tmp_path / "run")
    fnn.checkpoint.save(tmp_path / "bare", ts.params)
    with pytest.raises(errors.CheckpointError, match="got none; save it with net=net"):
        fnn.load(tmp_path / "bare")
    with pytest.raises(errors.CheckpointError, match="got nothing"):
        fnn.load(tmp_path / "absent")


def test_modules_are_named_to_be_imported(tmp_path):
    from tests.contracts.layers import block

    params, state = block.init(jax.random.key(0), (1, 4, 4, 4))
    fnn.checkpoint.save(tmp_path / "one", {"params": params, "state": state}, net=block)
    with pytest.raises(errors.DescriptionError, match=r"allow=\('tests',\)"):
        fnn.load(tmp_path / "one")
    assert fnn.load(tmp_path / "one", allow=("tests.contracts",)).net is block
