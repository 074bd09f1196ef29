"""How layers of equal shapes are paired: by what their names tell, or not at all.

Nothing here needs another library: dicts of NumPy arrays with the names that these give them, in
the order of a file that is sorted, reversed or shuffled.
"""

import collections

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import convert, errors, tree
from fnn.convert.words import natural, role, words

C = 4


def state_dict(*layers, shape=(C, C)):
    """A square linear layer for each name; each value tells which one it is."""
    found = {}
    for i, name in enumerate(layers):
        found[f"{name}.weight"] = np.full(shape, i, np.float32)
        found[f"{name}.bias"] = np.full(shape[0], i + 0.5, np.float32)
    return found


def pairing(net, given, *xs, **options):
    """{path of each dense layer: the number of the layer there}."""
    params, _ = convert.from_torch(net, given, *(xs or ((1, C),)), **options)
    kernels = tree.select(params, "*kernel")
    return {path.removesuffix("/kernel"): np.unique(k) for path, k in kernels.items()}


def dense(n):
    return fnn.serial(*[fnn.dense(C) for _ in range(n)])


def orders(given):
    """The same dict as files hold it."""
    keys = list(given)
    shuffled = np.random.default_rng(0).permutation(keys).tolist()
    for some in (keys, sorted(keys), keys[::-1], shuffled):
        yield {key: given[key] for key in some}


@given(st.permutations(range(26)))
def test_a_deep_chain_in_any_order(order):
    """As of safetensors, whose files list 0, 1, 10, 11, 12, 2."""
    given = state_dict(*[f"layers.{i}" for i in range(13)])
    keys = list(given)
    got = pairing(dense(13), {keys[i]: given[keys[i]] for i in order})
    assert got == {f"dense{i + 1}": i for i in range(13)}


def test_a_stack_of_layers_from_a_sorted_file():
    net = fnn.serial(embed=fnn.dense(C), blocks=fnn.repeat(dense(1), 12), head=fnn.dense(C))
    given = state_dict("embed", *[f"h.{i}.fc" for i in range(12)], "head")
    for some in orders(given):
        params, _ = convert.from_torch(net, some, (1, C))
        kernels = params["blocks"]["dense1"]["kernel"]
        np.testing.assert_array_equal(kernels[:, 0, 0], np.arange(1, 13))
        assert params["embed"]["kernel"][0, 0] == 0 and params["head"]["kernel"][0, 0] == 13
    back = convert.to_torch(net, params, {}, (1, C), names={"blocks/*/dense1": "h.*.fc"})
    assert not tree.compare(back, given)


def test_stacks_in_stacks_and_of_ensembles():
    inner = fnn.serial(rows=fnn.repeat(fnn.serial(fnn.dense(C)), 2))
    net = fnn.ensemble(inner, 11)
    names = [f"nets.{i}.rows.{j}" for i in range(11) for j in range(2)]
    given = state_dict(*names)
    for some in orders(given):
        params, _ = convert.from_torch(net, some, (1, C))
        wanted = np.arange(22).reshape(11, 2)
        np.testing.assert_array_equal(params["rows"]["dense1"]["kernel"][..., 0, 0], wanted)
    ours = convert.to_torch(net, params, {}, (1, C))
    assert "10.rows.1.dense1.weight" in ours
    assert not tree.compare(convert.from_torch(net, ours, (1, C))[0], params)
    theirs = convert.to_torch(net, params, {}, (1, C), names={"*/rows/*/dense1": "nets.*.rows.*"})
    assert not tree.compare(theirs, given)


def test_a_stack_of_recurrent_layers_and_statistics():
    net = fnn.repeat(fnn.serial(fnn.lstm(C), fnn.batch_norm()), 3)
    params, state = net.init(jax.random.key(0), (2, 5, C))
    params, state = jax.tree.map(
        lambda a: a + np.arange(a.size).reshape(a.shape).astype(a.dtype), (params, state)
    )
    for name in ("torch", "flax", "nnx", "haiku", "keras"):
        if name in ("haiku", "keras"):  # without recurrent layers
            net = fnn.repeat(fnn.serial(fnn.dense(C), fnn.batch_norm()), 3)
            params, state = net.init(jax.random.key(0), (2, 5, C))
        there = getattr(convert, f"to_{name}")(net, params, state, (2, 5, C))
        args = there if name == "haiku" else (there,)
        back = getattr(convert, f"from_{name}")(net, *args, (2, 5, C))
        assert not tree.compare(back, (params, state))


HEADS = {  # how libraries name q, k, v and out
    "torch": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "bert": ("self.query", "self.key", "self.value", "output.dense"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "meta": ("wq", "wk", "wv", "wo"),
    "diffusers": ("to_q", "to_k", "to_v", "to_out.0"),
    "t5": ("q", "k", "v", "o"),
    "flax": ("query", "key", "value", "out"),
    "timm": ("qkv.q", "qkv.k", "qkv.v", "proj"),
    "haiku": ("query", "key", "value", "linear"),
}


@pytest.mark.parametrize("library", HEADS)
def test_heads_by_the_tails_of_their_names(library):
    names = HEADS[library]
    net = fnn.attention(C, 2)
    for prefix in ("", "layer.0.attention."):
        for some in orders(state_dict(*[prefix + name for name in names])):
            assert pairing(net, some, (1, 3, C)) == {"q": 0, "k": 1, "v": 2, "out": 3}


BLOCKS = {  # norms, gate, up and down; d = hidden, so that shapes tell nothing
    "llama": "attn.wq attn.wk attn.wv attn.wo feed_forward.w3 feed_forward.w2 feed_forward.w1",
    "hf": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
    "mlp.up_proj mlp.down_proj mlp.gate_proj",
    "t5": "attn.q attn.k attn.v attn.o mlp.wi_1 mlp.w mlp.wi_0",
}


NORMS = {
    "llama": ("attention_norm", "ffn_norm"),
    "hf": ("input_layernorm", "post_attention_layernorm"),
    "t5": ("ln_1", "ln_2"),
}


@pytest.mark.parametrize("library", BLOCKS)
def test_gated_blocks(library):
    """w1, w2 and w3 are gate, down and up, whatever their numbers."""
    net = fnn.serial(
        b=fnn.repeat(fnn.transformer_block(C, 2, hidden=C, gated=True, norm=fnn.rms_norm), 11)
    )
    given = {}
    for i in range(11):
        tails = BLOCKS[library].split()
        given |= state_dict(*[f"layers.{i}.{name}" for name in tails])
        for j, name in enumerate(NORMS[library]):
            given[f"layers.{i}.{name}.weight"] = np.full(C, 10 * i + j, np.float32)
    for some in orders(given):
        params = convert.from_torch(net, some, (1, 3, C))[0]["b"]
        found = [params["attention"][name] for name in ("q", "k", "v", "out")]
        found += [params[name] for name in ("up", "down", "gate")]
        for i, layer in enumerate(found):
            assert (layer["kernel"] == i).all()
        scales = [params["norm1"]["scale"], params["norm2"]["scale"]]
        for j, scale in enumerate(scales):
            np.testing.assert_array_equal(scale[:, 0], 10 * np.arange(11) + j)


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


def test_words_tell_apart_what_numbers_do_not():
    net = fnn.serial(
        encoder=dense(11), decoder=fnn.serial(a=fnn.dense(C), b=fnn.dense(C)), head=fnn.dense(C)
    )
    names = [f"encoder.{i}" for i in range(11)] + ["decoder.a", "decoder.b", "classifier"]
    for some in orders(state_dict(*names)):
        got = pairing(net, some)
        assert got["head"] == 13 and got["decoder/a"] == 11 and got["decoder/b"] == 12
        assert [got[f"encoder/dense{i + 1}"] for i in range(11)] == list(range(11))


def test_a_norm_behind_numbered_blocks():
    block = fnn.serial(norm1=fnn.layer_norm(), norm2=fnn.layer_norm())
    net = fnn.serial(fnn.repeat(block, 11), fnn.layer_norm())
    for tail in ("ln_f", "norm"):
        names = [f"h.{i}.ln_{j}" for i in range(11) for j in (1, 2)] + [tail]
        given = {
            f"{n}.{e}": np.full(C, i, "f") for i, n in enumerate(names) for e in ("weight", "bias")
        }
        for some in orders(given):
            params, _ = convert.from_torch(net, some, (1, C))
            assert params["layer_norm1"]["scale"][0] == 22
            for j, name in enumerate(("norm1", "norm2")):
                scale = params["repeat1"][name]["scale"][:, 0]
                np.testing.assert_array_equal(scale, np.arange(j, 22, 2))


def test_shortcuts_are_not_counted_among_the_others():
    """Those of a residual network stand last here, and may stand first there."""
    net = fnn.serial(*[fnn.residual(fnn.serial(fnn.dense(C), fnn.dense(C)), fnn.dense(C))] * 2)
    names = [f"layer{i}.{n}" for i in (1, 2) for n in ("downsample.0", "fc1", "fc2")]
    for some in orders(state_dict(*names)):
        got = pairing(net, some)
        assert [got[f"residual{i}/shortcut"] for i in (1, 2)] == [0, 3]
        layers = [got[f"residual{i}/layer/dense{j}"] for i in (1, 2) for j in (1, 2)]
        assert layers == [1, 2, 4, 5]


def test_tied_shapes_of_embeddings_and_heads():
    net = fnn.serial(embed=fnn.embedding(5, 3), head=fnn.dense(5, use_bias=False))
    given = {"lm_head.weight": np.zeros((5, 3), "f"), "wte.weight": np.ones((5, 3), "f")}
    for some in orders(given):
        params, _ = convert.from_torch(net, some, jnp.zeros((1, 2), int))
        assert params["embed"]["embedding"].all() and not params["head"]["kernel"].any()


# --- what is not known


AMBIGUOUS = {  # a network of equal layers, and names that do not tell which is which
    "unknown names": (dense(2), ["alpha", "beta"]),
    "numbers of two lists": (dense(4), ["a.0", "a.1", "b.0", "b.1"]),
    "two numberings": (dense(2), ["fc1", "fc_1"]),
    "an unnumbered one": (dense(3), ["layers.0", "layers.1", "last"]),
    "roles without names": (fnn.attention(C, 2), ["0", "1", "2", "3"]),
    "gate and up without names": (fnn.transformer_block(C, 2, hidden=C, gated=True), None),
    "contradicting roles": (
        fnn.serial(gate=fnn.dense(C), up=fnn.dense(C)),
        ["up_proj", "down_proj"],
    ),
    "lists side by side": (
        fnn.repeat(fnn.serial(norm1=fnn.dense(C), norm2=fnn.dense(C)), 2),
        ["norms1.0", "norms1.1", "norms2.0", "norms2.1"],
    ),
    "words that contradict": (
        fnn.serial(
            a=fnn.serial(x=fnn.dense(C)), b=fnn.serial(y=fnn.dense(C)), c=fnn.serial(fnn.dense(C))
        ),
        ["a.y", "b.x", "c.z"],
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_names_do_not_tell_is_refused(case):
    net, names = AMBIGUOUS[case]
    shape = (1, 3, C) if names is None or len(names) == 4 else (1, C)
    if names is None:
        names = [*HEADS["torch"], "mlp.0", "mlp.1", "mlp.2"]
    given = state_dict(*names)
    if "mlp.0" in names:
        norms = [f"norm{i}.{entry}" for i in (1, 2) for entry in ("weight", "bias")]
        given |= {name: np.zeros(C, "f") for name in norms}
    for some in orders(given):
        with pytest.raises(errors.ParamsError, match="which is which of .*names=") as caught:
            convert.from_torch(net, some, shape)
        unsure = [name for name in names if name.startswith("mlp") or "mlp.0" not in names]
        assert all(name in caught.value.got for name in unsure)


class Live(collections.OrderedDict):
    """A dict as `module.state_dict()`; a copy has no `_metadata`."""

    _metadata: dict[str, None]


def test_the_order_of_registration_is_known_by_its_metadata():
    """As `module.state_dict()` has it; without it, or in another order, there is none."""
    names = ["stem", "encoder", "beta", "alpha"]
    live = Live(state_dict(*names))
    live._metadata = dict.fromkeys(["", *names])
    wanted = {f"dense{i + 1}": i for i in range(4)}
    assert pairing(dense(4), live) == wanted
    moved = live.copy()
    moved._metadata = live._metadata
    moved.move_to_end("encoder.weight")
    renamed = live.copy()
    renamed._metadata = live._metadata
    for entry in ("weight", "bias"):
        renamed[f"gamma.{entry}"] = renamed.pop(f"stem.{entry}")
    for some in (dict(live), live.copy(), moved, renamed):
        with pytest.raises(errors.ParamsError, match="which is which.*state_dict"):
            pairing(dense(4), some)
    numbered = Live(state_dict("fc2", "fc1"))
    numbered._metadata = dict.fromkeys(["", "fc2", "fc1"])
    assert pairing(dense(2), numbered) == {"dense1": 1, "dense2": 0}  # numbers come first


@given(st.permutations(["stem.a", "stem.b", "h.0.a", "h.0.b", "h.10.a", "h.2.a", "x", "head"]))
def test_no_order_makes_a_difference_or_a_guess(names):
    """Any permutation of any names gives what the sorted one gives, or is refused as that is."""
    net = fnn.serial(stem=dense(2), h=fnn.repeat(dense(1), 4), x=fnn.dense(C), head=fnn.dense(C))
    given = state_dict("stem.a", "stem.b", "h.0.a", "h.0.b", "h.10.a", "h.2.a", "x", "head")

    def outcome(keys):
        some = {f"{name}.{e}": given[f"{name}.{e}"] for name in keys for e in ("bias", "weight")}
        try:
            return {k: v.tolist() for k, v in pairing(net, some).items()}
        except errors.ParamsError as error:
            return type(error)

    assert outcome(names) == outcome(sorted(names))


# --- names that are given


def test_names_of_blocks_and_of_stacks():
    net = fnn.serial(first=dense(2), second=dense(2), stack=fnn.repeat(dense(2), 11))
    stacked = [f"layers.{i}.{name}" for i in range(11) for name in ("beta", "alpha")]
    given = state_dict("x.0", "x.1", "y.0", "y.1", *stacked)
    names = {"second": "x", "first": "y", "stack/*/dense1": "layers.*.alpha", "stack": "layers"}
    for some in orders(given):
        got = pairing(net, some, names=names)
        assert (got["second/dense1"], got["second/dense2"]) == (0, 1)
        assert (got["first/dense1"], got["first/dense2"]) == (2, 3)
        params, _ = convert.from_torch(net, some, (1, C), names=names)
        for name, start in (("dense1", 5), ("dense2", 4)):
            kernels = params["stack"][name]["kernel"][:, 0, 0]
            np.testing.assert_array_equal(kernels, np.arange(start, 26, 2))
    whole = names | {"stack/*/dense2": "layers.*.beta"}
    whole |= {
        f"{ours}/dense{i + 1}": f"{x}.{i}"
        for ours, x in (("first", "y"), ("second", "x"))
        for i in (0, 1)
    }
    assert not tree.compare(convert.to_torch(net, params, {}, (1, C), names=whole), given)


def test_names_by_number_count_from_zero_there():
    net = fnn.serial(*[fnn.serial(a=fnn.dense(C)) for _ in range(11)])
    names = {"serial*": "layers.*"}
    params, _ = net.init(jax.random.key(0), (1, C))
    there = convert.to_torch(net, params, {}, (1, C), names=names)
    assert list(there)[-1] == "layers.10.a.bias"
    moved = dict(sorted(there.items()))
    assert not tree.compare(convert.from_torch(net, moved, (1, C), names=names)[0], params)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"blocks": "x"}, "one of the 3 layers"),
        ({"dense1": "y"}, "layers of the other network"),
        ({"dense*": "layers.0"}, "as many layers"),
        ({"dense1": "layers.0", "dense2": "layers.0"}, "two for layers.0"),
    ],
)
def test_names_that_do_not_fit(names, said):
    with pytest.raises(fnn.FnnError, match=said):
        pairing(dense(3), state_dict("layers.0", "layers.1", "layers.2"), names=names)


def test_as_many_stars_on_the_way_back():
    params, _ = dense(2).init(jax.random.key(0), (1, C))
    with pytest.raises(errors.OptionError, match=r"as many \*"):
        convert.to_torch(dense(2), params, {}, (1, C), names={"dense*": "fc"})


# --- the same of the other libraries


def test_keras_by_path():
    net = dense(12)
    kernels = [np.full((C, C), i, "f") for i in range(12)]
    given = {}
    for i, kernel in enumerate(kernels):
        name = f"net/dense_{i + 3}"
        given |= {f"{name}/kernel": kernel, f"{name}/bias": kernel[0]}
    for some in orders(given):
        params, _ = convert.from_keras(net, some, (1, C))
        assert [params[f"dense{i + 1}"]["kernel"][0, 0] for i in range(12)] == list(range(12))
    unknown = {k.replace("dense_3", "first"): v for k, v in given.items()}
    with pytest.raises(errors.ParamsError, match="which is which"):
        convert.from_keras(net, unknown, (1, C))


def test_a_separable_convolution_of_keras_by_path():
    net = fnn.serial(*[fnn.separable_conv(C, (3, 3)) for _ in range(2)])
    given = {}
    for i, name in enumerate(("separable_conv2d", "separable_conv2d_1")):
        given |= {
            f"net/{name}/depthwise_kernel": np.full((3, 3, C, 1), i, "f"),
            f"net/{name}/pointwise_kernel": np.full((1, 1, C, C), i, "f"),
            f"net/{name}/bias": np.full(C, i, "f"),
        }
    shape = (1, 5, 5, C)
    whole = {"separable_conv1": "net/separable_conv2d", "separable_conv2": "net/separable_conv2d_1"}
    for names in (None, whole):
        for some in orders(given):
            params, _ = convert.from_keras(net, some, shape, names=names)
            for i in (0, 1):
                layer = params[f"separable_conv{i + 1}"]
                assert all((a == i).all() for a in jax.tree.leaves(layer))
                assert set(layer) == {"depthwise", "pointwise"}
    listed = convert.to_keras(net, params, {}, shape)
    assert not tree.compare(listed, list(given.values()))
    of_keras_2 = {"d/depthwise_kernel": np.ones((3, 3, C, 2), "f"), "d/bias": np.ones(2 * C, "f")}
    layer = fnn.depthwise_conv((3, 3), multiplier=2)
    assert convert.from_keras(layer, of_keras_2, shape)[0]["bias"].all()


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


def test_bfloat16_there_and_back():
    net, shape = fnn.dense(2), jax.ShapeDtypeStruct((1, 3), jnp.bfloat16)
    given = {"weight": np.ones((2, 3), ml_dtypes.bfloat16), "bias": np.ones(2, ml_dtypes.bfloat16)}
    params, _ = convert.from_torch(net, given, shape)
    assert params["kernel"].dtype == jnp.bfloat16
    assert not tree.compare(convert.to_torch(net, params, {}, shape), given)
    with pytest.raises(errors.DtypeError, match=r"weight of bfloat16.*jnp\.bfloat16"):
        convert.from_torch(net, given, (1, 3))


def test_bytes_in_the_other_order_are_read_and_masks_are_not():
    given = {name: array.astype(">f4") for name, array in state_dict("fc").items()}
    given["fc.weight"][:] = np.arange(C * C).reshape(C, C)
    params, _ = convert.from_torch(fnn.dense(C), given, (1, C))
    np.testing.assert_array_equal(params["kernel"], np.arange(C * C).reshape(C, C).T)
    with pytest.raises(errors.InputError, match="without a mask"):
        masked = {"fc.weight": np.ma.ones((C, C), "f"), "fc.bias": np.zeros(C, "f")}
        convert.from_torch(fnn.dense(C), masked, (1, C))


# --- words


def test_words_roles_and_numbers():
    assert words("encoder.layers.3.self_attn.q_proj")[:2] == ["encoder", "block"]
    assert "transpose" in words("conv2_d_transpose") and "transpose" in words("ConvTranspose_0")
    for name in ("LayerNorm_0", "layer_norm", "ln_1", "layernorm", "layer_normalization_3"):
        assert words(name) == ["layernorm", "norm"]
    assert words("batch_normalization") == words("bn1") == ["batchnorm", "norm"]
    roles = {"attn.c_q": "q", "h.value": "v", "output.dense": "out", "c_fc": "up", "w1": None}
    assert {name: role(name) for name in roles} == roles
    assert role("w1", gated=True) == "gate"
    assert natural(["b.10", "b.9"]) == ["b.9", "b.10"]
    assert natural(["dense", "dense_10", "dense_2"]) == ["dense", "dense_2", "dense_10"]
    assert natural(["10", "2.1", "2.0"]) == ["2.0", "2.1", "10"]
    assert natural(["a", "a.0"]) is None and natural(["a", "b"]) is None
