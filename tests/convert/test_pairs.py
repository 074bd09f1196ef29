"""How layers of equal shapes are paired: by what their names tell, or not at all."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import convert, errors, tree
from tests.convert.naming import HEADS, C, dense, orders, pairing, state_dict


@given(st.permutations(range(26)))
def test_a_deep_chain_in_any_order(order):
    """In the order of safetensors, whose files list 0, 1, 10, 11, 12, 2."""
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
