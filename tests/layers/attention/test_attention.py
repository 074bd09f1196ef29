"""Attention against the loop: masks, memory, positions and the cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from tests.layers import oracles
from tests.layers.support import biased
from tests.support import asarray

MASKS = {  # the shape of a mask for [2, 3, C] and so many heads
    "one for all": lambda heads: (1, 3, 3),
    "examples": lambda heads: (2, 3, 3),
    "keys": lambda heads: (2, 1, 3),
    "queries": lambda heads: (2, 3, 1),
    "heads": lambda heads: (2, heads, 3, 3),
    "keys of all heads": lambda heads: (2, 1, 1, 3),
    "keys of each head": lambda heads: (1, heads, 1, 3),
}


@given(
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1)]),
    causal=st.booleans(),
    rotary=st.sampled_from([None, 10.0, 10_000.0]),
    masked=st.sampled_from([None, *MASKS]),
    seed=st.integers(0, 2**16),
)
def test_attention_is_the_loop(heads, causal, rotary, masked, seed):
    heads, kv_heads = heads
    random = np.random.default_rng(seed)
    net = fnn.attention(8, heads, kv_heads=kv_heads, causal=causal, rotary=rotary, head_dim=4)
    x = random.normal(size=(2, 3, 6)).astype(np.float32)
    params = biased(net.init(jax.random.key(seed), x)[0], seed)
    mask = None if masked is None else random.random(MASKS[masked](heads)) < 0.6
    y = jax.jit(net)(params, x, None, mask)
    full = np.ones((2, heads, 3, 3), bool)
    if masked is not None:
        full = full & (mask if mask.ndim == 4 else mask[:, None])
    for i in range(2):
        wanted = oracles.attention(params, x[i], x[i], heads, kv_heads, causal, rotary, full[i])
        np.testing.assert_allclose(y[i], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lead", [(), (2,), (2, 1, 3)])
def test_attention_to_a_memory_and_any_leading_axes(lead):
    net = fnn.attention(6, 2)
    x, memory = np.random.default_rng(0).normal(size=(2, *lead, 4, 5)).astype(np.float32)
    memory = memory[..., :3, :]
    params = biased(net.init(jax.random.key(0), x, memory)[0], 0)
    y = jax.jit(net)(params, x, memory)
    for i in np.ndindex(lead):
        wanted = oracles.attention(
            params, x[i], memory[i], 2, 2, False, None, np.ones((2, 4, 3), bool)
        )
        np.testing.assert_allclose(y[i], wanted, rtol=1e-4, atol=1e-4)


def test_what_may_look_at_nothing_gets_zeros_and_finite_gradients():
    net = fnn.attention(4, 2)
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    params, _ = net.init(jax.random.key(0), x)
    params["out"]["bias"] = jnp.arange(4.0)
    mask = jnp.ones((3, 3), bool).at[1].set(False)

    @jax.jit
    def run(params, x):
        def loss(params, x):
            y = net(params, x, None, mask[None])
            return y.sum(), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    (_, y), grads = run(params, x)
    np.testing.assert_array_equal(y[:, 1], [[0, 1, 2, 3]] * 2)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    empty = jax.jit(net)(params, x, x[:, :0])
    np.testing.assert_array_equal(empty, np.broadcast_to(np.arange(4.0), (2, 3, 4)))
    assert net(params, x[:0]).shape == (0, 3, 4) and net(params, x[:, :0]).shape == (2, 0, 4)


REAL = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]], bool)  # [B, T]


HIDING = {
    "keys": REAL[:, None, :],
    "keys of all heads": REAL[:, None, None, :],
    "positions": REAL[:, :, None] & REAL[:, None, :],
}


@pytest.mark.parametrize(
    "build, hiding",
    [
        ("attention", "keys"), ("attention", "keys of all heads"), ("attention", "positions"),
        ("memory", "keys"), ("xla", "positions"), ("block", "keys"), ("deep", "positions"),
    ],
)  # fmt: skip
def test_what_is_hidden_changes_neither_outputs_nor_gradients(build, hiding):
    """NaN and infinities at positions that nobody may look at, where the loss does not look."""
    options = {"causal": hiding == "positions", "rotary": 10.0}
    net = {
        "attention": fnn.attention(4, 2, kv_heads=1, **options),
        "xla": fnn.attention(4, 2, implementation="xla"),
        "block": fnn.transformer_block(4, 2, gated=True, **options),
        "deep": fnn.repeat(fnn.transformer_block(4, 2, **options), 2),
        "memory": fnn.attention(4, 2),
    }[build]
    mask = asarray(HIDING[hiding])
    x, w = jax.random.normal(jax.random.key(1), (2, 3, 4, 4))
    params = biased(net.init(jax.random.key(0), x)[0], 1)
    kept = np.ones_like(REAL) if build == "memory" else REAL

    @jax.jit
    def run(params, source):
        def loss(params, source):
            xs = (x, source) if build == "memory" else (source,)
            y = net(params, *xs, mask=mask)
            return jnp.sum(jnp.where(kept[..., None], w * y, 0)), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, source)

    (_, y), grads = clean = run(params, jnp.where(REAL[..., None], x, 0))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(clean))
    assert not grads[1][~REAL].any()
    for rubbish in (np.nan, np.inf):
        (_, spoiled), found = run(params, jnp.where(REAL[..., None], x, rubbish))
        np.testing.assert_array_equal(spoiled[kept], y[kept])
        jax.tree.map(np.testing.assert_array_equal, found, grads)
        if hiding == "positions":
            np.testing.assert_array_equal(spoiled, y)


def test_a_position_changes_only_those_that_may_look_at_it():
    """NaN where some may look and others not: the future, and another document's."""
    x = jax.random.normal(jax.random.key(1), (1, 6, 4)).at[0, 2].set(jnp.nan)
    document = np.array([0, 0, 0, 1, 1, 1])
    packed = asarray(document[:, None] == document)[None]
    for net, mask, bad in (
        (fnn.transformer_block(4, 2, causal=True), None, [2, 3, 4, 5]),
        (fnn.transformer_block(4, 2, causal=True), packed, [2]),
        (fnn.transformer_block(4, 2), packed, [0, 1, 2]),
    ):
        params, _ = net.init(jax.random.key(0), x)
        good = np.setdiff1d(np.arange(6), bad)
        run = jax.jit(partial(net, mask=mask))
        y, wanted = run(params, x), run(params, x.at[0, 2].set(1.0))
        assert np.isnan(y[0, bad]).all(), "what looks at it is NaN"
        np.testing.assert_array_equal(y[0, good], wanted[0, good])


def test_a_query_that_is_not_finite_is_not_hidden_by_a_mask_of_keys():
    """A position that reads others though nobody reads it is real: its NaN is not swallowed."""
    net, x = fnn.attention(4, 2), jnp.ones((1, 3, 4))
    params, _ = net.init(jax.random.key(0), x)
    keys, run = asarray([[[True, True, False]]]), jax.jit(net)
    y = run(params, x.at[0, 2, 0].set(jnp.nan), None, keys)
    assert np.isnan(y[0, 2]).all() and np.isfinite(y[0, :2]).all()
    np.testing.assert_allclose(
        run(params, 2 * x, None, keys)[0, 2], run(params, 2 * x[:, :2])[0, 0]
    )


def test_attention_is_pytorchs():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    net = fnn.attention(8, 2)
    weight = theirs.in_proj_weight.detach().numpy().reshape(3, 8, 8)
    bias = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    with torch.no_grad():
        theirs.in_proj_bias.copy_(torch.from_numpy(bias.reshape(-1)))
    params = {n: {"kernel": weight[i].T, "bias": bias[i]} for i, n in enumerate("qkv")}
    out = theirs.out_proj
    params["out"] = {"kernel": out.weight.detach().numpy().T, "bias": out.bias.detach().numpy()}
    x = np.random.default_rng(1).normal(size=(3, 5, 8)).astype(np.float32)
    causal = np.tril(np.ones((5, 5), bool))
    wanted, _ = theirs(*[torch.from_numpy(x)] * 3, attn_mask=torch.from_numpy(~causal))
    got = jax.jit(fnn.attention(8, 2, causal=True))(params, x)
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)
    masked = jax.jit(net)(params, x, None, causal[None])
    np.testing.assert_allclose(got, masked, rtol=1e-5, atol=1e-6)
    by_jax = jax.jit(fnn.attention(8, 2, causal=True, implementation="xla"))(params, x)
    np.testing.assert_allclose(by_jax, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)


# --- the cache


@pytest.mark.parametrize("chunks", [(1,) * 7, (3, 1, 3), (7,)])
def test_decoding_with_a_cache_is_the_whole_at_once(chunks):
    options = {"kv_heads": 2, "causal": True, "rotary": 100.0}

    def stack(**more):
        block = fnn.transformer_block(8, 4, norm=fnn.rms_norm, **options, **more)
        return fnn.serial(fnn.repeat(block, 2), fnn.dense(3))

    whole, decoder = stack(), stack(cache=9)
    x = jax.random.normal(jax.random.key(1), (2, 7, 8))
    params, _ = whole.init(jax.random.key(0), x)
    same, state = decoder.init(jax.random.key(0), (2, 1, 8))
    jax.tree.map(np.testing.assert_array_equal, same, params)
    step, outputs, start = jax.jit(decoder.apply), [], 0
    for n in chunks:
        y, state = step(params, state, x[:, start : start + n])
        outputs.append(y)
        start += n
    got = jnp.concatenate(outputs, axis=1)
    np.testing.assert_allclose(got, whole(params, x), rtol=1e-4, atol=1e-5)


def test_a_full_cache_raises_or_gives_nan():
    net = fnn.serial(a=fnn.attention(4, 2, causal=True, cache=3))
    params, state = net.init(jax.random.key(0), (1, 2, 4))
    x = jnp.ones((1, 2, 4))
    _, state = net.apply(params, state, x)
    with pytest.raises(errors.InputError, match="a/cache: .*no more than cache=3 .*got 2 after 2"):
        net.apply(params, state, x)
    assert np.isnan(jax.jit(net.apply)(params, state, x)[0]).all()
    assert np.isfinite(net.apply(params, state, x[:, :1])[0]).all()
    with pytest.raises(errors.InputError, match="got 4 after 0"):
        net.init(jax.random.key(0), (1, 4, 4))


# --- mistakes


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 3}, {"kv_heads": 3}, {"heads": 0}, {"features": 0}, {"features": 2.5},
        {"head_dim": 3, "rotary": 10.0}, {"rotary": -1.0}, {"rotary": "yes"}, {"cache": 4},
        {"cache": 0, "causal": True}, {"implementation": "fast"}, {"kernel_init": 3},
        {"head_dim": 0}, {"kv_heads": "2"}, {"heads": None}, {"heads": True},
    ],
)  # fmt: skip
def test_wrong_options(wrong):
    with pytest.raises(errors.OptionError, match="^attention: "):
        fnn.attention(**{"features": 8, "heads": 4, **wrong})
    if not set(wrong) & {"head_dim", "implementation", "kernel_init"}:
        with pytest.raises(errors.OptionError, match="^(attention|transformer_block): "):
            fnn.transformer_block(**{"features": 8, "heads": 4, **wrong})


X = jnp.ones((2, 3, 4))


@pytest.mark.parametrize(
    "xs, error, text",
    [
        ((X[0, 0],), errors.ShapeError, r"net: expected x \[..., T, C\], at least 2 axes"),
        ((X.astype(int),), errors.DtypeError, "net: .*floating"),
        ((X[..., :3],), errors.ShapeError, r"net/q: expected last axis 4"),
        ((X, X[:1]), errors.ShapeError, "net: expected memory with the leading axes of x"),
        ((X, X[0, 0]), errors.ShapeError, "net: expected memory"),
        ((X, X.astype(jnp.bfloat16)), errors.DtypeError, "net/k: "),
        ((X, X.astype(int)), errors.DtypeError, "net: .*memory"),
        ((X, None, jnp.ones((3, 3))), errors.DtypeError, "net: expected mask of booleans"),
        ((X, None, jnp.ones((2, 3, 4), bool)), errors.ShapeError, r"net: .* \(2, 3, 3\)"),
        ((X, None, jnp.ones((2, 3, 3, 3), bool)), errors.ShapeError, r"net: .* \(2, 2, 3, 3\)"),
        ((X, None, jnp.ones((3, 3, 3), bool)), errors.ShapeError, "net: expected mask"),
        ((X, None, jnp.ones((1, 1, 1, 1, 1), bool)), errors.ShapeError, "net: expected mask"),
        # of keys [B, S] or one for all [T, S]: not guessed, B = T or not
        ((X, None, jnp.ones((2, 3), bool)), errors.ShapeError, r"mask\[..., None, :\]"),
        ((X, None, jnp.ones((3, 3), bool)), errors.ShapeError, r"one \[T, S\] for all, mask\[None"),
        ((X, None, jnp.ones(3, bool)), errors.ShapeError, "net: expected mask"),
        ((), errors.InputError, "net: expected .* got 0"),
        ((X, X, None, None, None, None, X), errors.InputError, "net: expected .* got 7"),
        (("text",), errors.InputError, "net: "),
    ],
)
def test_wrong_inputs(xs, error, text):
    @fnn.compose(net=fnn.attention(6, 2))
    def net(f, *xs):
        return f.net(*xs)

    params, _ = net.init(jax.random.key(0), (1, 3, 4))
    said = set()
    for call in (net, jax.jit(net) if "text" not in xs else net):
        with pytest.raises(error, match=text) as info:
            call(params, *xs)
        said.add(str(info.value))
    assert len(said) == 1


def test_causal_attention_takes_no_memory():
    with pytest.raises(errors.InputError, match="no memory in causal attention"):
        fnn.attention(4, 2, causal=True).init(jax.random.key(0), X, X)
    with pytest.raises(errors.ShapeError, match="transformer_block: expected last axis 8"):
        fnn.transformer_block(8, 2).init(jax.random.key(0), X)
