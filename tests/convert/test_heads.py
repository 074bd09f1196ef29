"""q, k and v: in one array, with an axis for the heads, and by their names."""

import jax
import numpy as np
import pytest

import fnn
from fnn import convert, errors, tree
from tests.convert.naming import HEADS, C, orders, pairing, state_dict


@pytest.mark.parametrize("library", HEADS)
def test_heads_by_the_tails_of_their_names(library):
    names = HEADS[library]
    net = fnn.attention(C, 2)
    for prefix in ("", "layer.0.attention."):
        for some in orders(state_dict(*[prefix + name for name in names])):
            assert pairing(net, some, (1, 3, C)) == {"q": 0, "k": 1, "v": 2, "out": 3}


def fused(prefix, q, k, v, joint="in_proj_"):
    weights = [np.full((n, C), i, np.float32) for i, n in enumerate((q, k, v))]
    biases = [np.full(n, i + 0.5, np.float32) for i, n in enumerate((q, k, v))]
    return {
        f"{prefix}{joint}weight": np.concatenate(weights),
        f"{prefix}{joint}bias": np.concatenate(biases),
    }


@pytest.mark.parametrize("joint", ["in_proj_", "c_attn.", "qkv.", "to_qkv.", "Wqkv."])
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_q_k_and_v_in_one_array(joint, kv_heads):
    net = fnn.attention(C, 2, kv_heads=kv_heads)
    size = C * kv_heads // 2
    given = fused("attn.", C, size, size, joint)
    out = {"attn.proj.weight": np.full((C, C), 3, np.float32), "attn.proj.bias": np.zeros(C, "f")}
    for some in orders(given | out):
        assert pairing(net, some, (1, 3, C)) == {"q": 0, "k": 1, "v": 2, "out": 3}
    params, _ = convert.from_torch(net, given | out, (1, 3, C))
    name = f"attn.{joint[:-1]}"
    names = {head: f"{name}.{head}" for head in "qkv"} | {"out": "attn.proj"}
    assert not tree.compare(convert.to_torch(net, params, {}, (1, 3, C), names=names), given | out)
    assert not tree.compare(convert.from_torch(net, some, (1, 3, C), names=names)[0], params)


def test_one_array_stays_one_where_the_network_has_it_so():
    net = fnn.serial(qkv=fnn.dense(3 * C), proj=fnn.dense(C))
    given = state_dict("attn.qkv", shape=(3 * C, C)) | state_dict("attn.proj", shape=(C, 3 * C))
    assert set(convert.from_torch(net, given, (1, C))[0]) == {"qkv", "proj"}


def test_a_conv1d_of_transformers_is_named():
    turned = {k: v.T for k, v in fused("h.0.attn.", C, C, C, "c_attn.").items()}
    with pytest.raises(errors.ParamsError, match=r"c_attn.weight \(12, 4\).*Conv1D.*transpose"):
        convert.from_torch(fnn.attention(C, 2), turned | state_dict("h.0.attn.c_proj"), (1, 3, C))


@pytest.mark.parametrize("framework", ["flax", "nnx", "haiku"])
def test_heads_of_the_libraries_in_jax(framework):
    net = fnn.serial(fnn.repeat(fnn.serial(fnn.attention(C, 2)), 11))
    weight, bias = ("w", "b") if framework == "haiku" else ("kernel", "bias")
    heads = ("query", "key", "value", "out")
    given = {}
    for i in range(11):
        for j, name in enumerate(heads):
            layer = {weight: np.full((C, C), j, "f"), bias: np.full(C, i, "f")}
            if framework == "haiku":
                given[f"net/block{f'_{i}' if i else ''}/{name}"] = layer
            else:
                given.setdefault(f"Block_{i}", {})[name] = layer
    given = jax.tree.map(lambda a: a, given)  # which sorts
    args = {"flax": ({"params": given},), "nnx": (given,), "haiku": (given, {})}[framework]
    params, _ = getattr(convert, f"from_{framework}")(net, *args, (1, 3, C))
    attention = params["repeat1"]["attention1"]
    for j, name in enumerate(("q", "k", "v", "out")):
        assert (attention[name]["kernel"] == j).all()
        np.testing.assert_array_equal(attention[name]["bias"][:, 0], np.arange(11))
