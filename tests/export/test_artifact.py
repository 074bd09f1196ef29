"""Artifacts against the networks that they are of."""

import jax
import jax.numpy as jnp
import numpy as np

import fnn


def test_an_artifact_is_its_network(tmp_path):
    net = fnn.serial(
        fnn.conv(4, (3, 3)), jax.nn.relu, fnn.batch_norm(), fnn.flatten(3), fnn.dense(3)
    )
    params, state = net.init(jax.random.key(0), (1, 6, 6, 1))
    fnn.export.save(tmp_path / "a", net, params, state, ("batch", 6, 6, 1), labels=list("abc"))
    artifact = fnn.export.load(tmp_path / "a")
    for n in (1, 3):
        x = jax.random.normal(jax.random.key(n), (n, 6, 6, 1))
        wanted = jax.jit(lambda p, s, x: net.apply(p, s, x)[0])(params, state, x)
        np.testing.assert_array_equal(artifact(x), wanted)
    said = artifact.manifest["programs"]["apply"]
    assert said["inputs"] == [{"name": "x", "shape": ["batch", 6, 6, 1], "dtype": "float32"}]
    assert said["outputs"] == [{"name": "y", "shape": ["batch", 3], "dtype": "float32"}]
    assert (
        artifact.manifest["labels"] == ["a", "b", "c"]
        and jnp.size(artifact.params["dense1"]["bias"]) == 3
    )
