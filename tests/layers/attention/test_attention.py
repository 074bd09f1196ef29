"""Attention against the loop: masks, segments, memory and positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from tests.layers.attention.support import drawn_params, layer
from tests.support import asarray

MASKS = {  # the shape of a mask for [2, 5, C] and so many heads
    "one for all": lambda heads: (1, 5, 5),
    "examples": lambda heads: (2, 5, 5),
    "keys": lambda heads: (2, 1, 5),
    "queries": lambda heads: (2, 5, 1),
    "heads": lambda heads: (2, heads, 5, 5),
    "keys of all heads": lambda heads: (2, 1, 1, 5),
    "keys of each head": lambda heads: (1, heads, 1, 5),
}
SEGMENTS = np.array([[1, 1, 2, 2, 2], [0, 4, 4, 1, 0]], np.int32)


@given(
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1)]),
    causal=st.booleans(),
    rotary=st.sampled_from([None, 10.0, 10_000.0]),
    masked=st.sampled_from([None, *MASKS]),
    segments=st.booleans(),
    window=st.sampled_from([None, 1, 2, 4]),
    others=st.sets(st.sampled_from(["qk_norm", "soft_cap", "distances", "bias"])),
    block=st.sampled_from([None, 2]),
    seed=st.integers(0, 2**16),
)
def test_attention_is_the_loop(
    heads, causal, rotary, masked, segments, window, others, block, seed
):
    heads, kv_heads = heads
    random = np.random.default_rng(seed)
    options = {"kv_heads": kv_heads, "rotary": rotary, "qk_norm": "qk_norm" in others}
    seen = {"causal": causal, "window": window, "soft_cap": 1.5 if "soft_cap" in others else None}
    slopes = np.float32(np.arange(1, heads + 1))

    def distances(d):
        return -slopes * abs(d) / 4

    def of_all(d):
        return -jnp.asarray(slopes)[None] * abs(d)[:, None].astype(jnp.float32) / 4

    by_distance = "distances" in others
    net = fnn.attention(
        8, heads, head_dim=4, block=block, distances=of_all if by_distance else None,
        **options, **seen,
    )  # fmt: skip
    x = random.normal(size=(2, 5, 6)).astype(np.float32)
    params = drawn_params(net, x, seed=seed)
    mask = None if masked is None else random.random(MASKS[masked](heads)) < 0.6
    bias = np.float32(random.normal(size=(2, heads, 5, 5))) if "bias" in others else None
    ids = SEGMENTS if segments else None
    y = jax.jit(net)(params, x, mask=mask, segments=ids, bias=bias)
    mask = mask if mask is None or mask.ndim == 4 else mask[:, None]
    wanted = layer(
        params, x, heads, **options, **seen, mask=mask, segments=ids, bias=bias,
        distances=distances if by_distance else None,
    )  # fmt: skip
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_attention_to_a_memory_and_any_leading_axes():
    net = fnn.attention(6, 2)
    leads = (), (2,), (2, 1, 3)
    rng = np.random.default_rng(0)
    xs = [np.float32(rng.normal(size=(2, *lead, 4, 5))) for lead in leads]
    params = drawn_params(net, xs[0][0], xs[0][1])
    found = jax.jit(lambda p, xs: [net(p, x, memory[..., :3, :]) for x, memory in xs])(params, xs)
    for (x, memory), y in zip(xs, found, strict=True):
        x, memory = x.reshape(-1, 4, 5), memory.reshape(-1, 4, 5)[:, :3]
        wanted = layer(params, x, 2, memory=memory).reshape(y.shape)
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_packed_sequences_are_each_alone():
    """Rows of `fnn.data.packed`, with NaN as padding, which no output and no gradient sees."""
    options = {"causal": True, "rotary": 10.0, "window": 3}
    net, deep = fnn.attention(4, 2, **options), fnn.transformer_block(4, 2, **options)
    sequences = [np.arange(n, dtype=np.int32) + 1 for n in (3, 5, 2, 4)]
    rows = fnn.data.packed(sequences, 8)
    batch = jax.tree.map(lambda *a: np.stack(a), *(rows[i] for i in range(len(rows))))
    table = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    x, real = table[batch["tokens"]], batch["segments"] > 0
    params, deeper = drawn_params(net, x), drawn_params(deep, x)

    @jax.jit
    def run(params, deeper, x, segments):
        def loss(params, deeper, x):
            y, z = net(params, x, segments=segments), deep(deeper, x, segments=segments)
            kept = (segments > 0)[..., None]
            return sum(jnp.sum(jnp.where(kept, jnp.sin(a), 0)) for a in (y, z)), (y, z)

        return jax.grad(loss, (0, 1, 2), has_aux=True)(params, deeper, x)

    grads, (y, z) = run(params, deeper, x, batch["segments"])
    for sequence, wanted in (
        (s, layer(params, table[s][None], 2, **options)[0]) for s in sequences
    ):
        starts = (batch["positions"] == 0) & real
        found = [
            y[i, j : j + len(sequence)]
            for i, j in zip(*np.nonzero(starts), strict=True)
            if (batch["segments"][i] == batch["segments"][i, j]).sum() == len(sequence)
        ]
        np.testing.assert_allclose(found, [wanted], rtol=1e-4, atol=1e-5)
    outputs = np.broadcast_to(params["out"]["bias"], y.shape)
    np.testing.assert_array_equal(np.asarray(y)[~real], outputs[~real])
    spoiled = run(params, deeper, np.where(real[..., None], x, np.nan), batch["segments"])
    jax.tree.map(np.testing.assert_array_equal, spoiled, (grads, (y, z)))
    assert np.isfinite(z).all() and not np.asarray(grads[2])[~real].any()


def test_examples_are_the_batch_with_every_option():
    net = fnn.attention(
        4, 2, kv_heads=1, window=2, rotary=10.0, soft_cap=2.0, qk_norm=True, block=2,
        distances=fnn.relative_bias(2, buckets=4, max_distance=3),
    )  # fmt: skip
    x = np.float32(np.random.default_rng(0).normal(size=(2, 5, 4)))
    params = drawn_params(net, x)
    xs = x, None, np.arange(50).reshape(2, 5, 5) % 3 > 0, SEGMENTS, x @ x.transpose(0, 2, 1)
    batch, each = jax.jit(
        lambda p, *xs: (net(p, *xs), jax.vmap(net, (None, 0, None, 0, 0, 0))(p, *xs))
    )(params, *xs)
    np.testing.assert_allclose(batch, each, atol=1e-6)


def test_what_may_look_at_nothing_gets_zeros_and_finite_gradients():
    net = fnn.attention(4, 2)
    x = np.float32(np.random.default_rng(1).normal(size=(2, 3, 4)))
    params = drawn_params(net, x)
    params["out"]["bias"] = np.arange(4, dtype=np.float32)
    mask = np.array([[1, 1, 1], [0, 0, 0], [1, 1, 1]], bool)

    @jax.jit
    def run(params, x):
        def loss(params, x):
            y = net(params, x, None, mask[None])
            return y.sum(), y

        empty = net(params, x, x[:, :0])
        assert net(params, x[:0]).shape == (0, 3, 4) and net(params, x[:, :0]).shape == (2, 0, 4)
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x), empty

    ((_, y), grads), empty = run(params, x)
    np.testing.assert_array_equal(y[:, 1], [[0, 1, 2, 3]] * 2)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    np.testing.assert_array_equal(empty, np.broadcast_to(np.arange(4.0), (2, 3, 4)))


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
    x, w = np.float32(np.random.default_rng(1).normal(size=(2, 3, 4, 4)))
    params = drawn_params(net, x)
    kept = np.ones_like(REAL) if build == "memory" else REAL

    @jax.jit
    def run(params, source):
        def loss(params, source):
            xs = (x, source) if build == "memory" else (source,)
            y = net(params, *xs, mask=mask)
            return jnp.sum(jnp.where(kept[..., None], w * y, 0)), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, source)

    (_, y), grads = clean = run(params, np.where(REAL[..., None], x, np.float32(0)))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(clean))
    assert not grads[1][~REAL].any()
    for rubbish in (np.nan, np.inf):
        (_, spoiled), found = run(params, np.where(REAL[..., None], x, np.float32(rubbish)))
        np.testing.assert_array_equal(spoiled[kept], y[kept])
        jax.tree.map(np.testing.assert_array_equal, found, grads)
        if hiding == "positions":
            np.testing.assert_array_equal(spoiled, y)


def test_a_position_changes_only_those_that_may_look_at_it():
    """NaN where some may look and others not: the future, and another document's."""
    x = np.float32(np.random.default_rng(1).normal(size=(1, 6, 4)))
    document = np.array([0, 0, 0, 1, 1, 1])
    packed = (document[:, None] == document)[None]
    causal, whole = fnn.transformer_block(4, 2, causal=True), fnn.transformer_block(4, 2)
    params = drawn_params(causal, x)
    nets = (causal, None, [2, 3, 4, 5]), (causal, packed, [2]), (whole, packed, [0, 1, 2])
    run = jax.jit(lambda params, x: [net(params, x, mask=mask) for net, mask, _ in nets])
    clean, x[0, 2] = run(params, np.where(np.arange(6)[:, None] == 2, np.float32(1), x)), np.nan
    for y, wanted, (_, _, bad) in zip(run(params, x), clean, nets, strict=True):
        good = np.setdiff1d(np.arange(6), bad)
        assert np.isnan(y[0, bad]).all(), "what looks at it is NaN"
        np.testing.assert_array_equal(y[0, good], wanted[0, good])


def test_a_query_that_is_not_finite_is_not_hidden_by_a_mask_of_keys():
    """A position that reads others though nobody reads it is real: its NaN is not swallowed."""
    net, x = fnn.attention(4, 2), np.ones((1, 3, 4), np.float32)
    params, bad = drawn_params(net, x), x.copy()
    keys, run, bad[0, 2, 0] = np.array([[[True, True, False]]]), jax.jit(net), np.nan
    y = run(params, bad, None, keys)
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
    past, theirs = (fnn.attention(8, 2, causal=True, implementation=i) for i in (None, "xla"))
    got, masked, by_jax = jax.jit(
        lambda params, x: (past(params, x), net(params, x, None, causal[None]), theirs(params, x))
    )(params, x)
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got, masked, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_jax, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_weights_are_dropped_in_training_alone_whatever_the_blocks():
    x = np.float32(np.random.default_rng(0).normal(size=(2, 5, 4)))
    nets = [fnn.attention(4, 2, dropout=0.5, block=block) for block in (None, 2)]
    params, plain = drawn_params(nets[0], x), fnn.attention(4, 2)

    @jax.jit
    def run(key, params, x):
        y = [net.apply(params, {}, x, key=key, train=True)[0] for net in nets]
        return *y, nets[0](params, x), plain(params, x)

    first, blocks, evaluated, wanted = run(jax.random.key(0), params, x)
    again, other = (run(jax.random.key(i), params, x)[0] for i in (0, 1))
    np.testing.assert_allclose(first, blocks, atol=1e-6)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(evaluated, wanted)
    assert np.abs(first - wanted).max() > 0.01 and np.abs(first - other).max() > 0.01
    with pytest.raises(errors.RandomKeyError):
        jax.eval_shape(lambda p: nets[0].apply(p, {}, x, train=True), params)


# --- mistakes


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 3}, {"kv_heads": 3}, {"heads": 0}, {"features": 0}, {"features": 2.5},
        {"head_dim": 3, "rotary": 10.0}, {"rotary": -1.0}, {"rotary": "yes"}, {"cache": 4},
        {"cache": 0, "causal": True}, {"implementation": "fast"}, {"kernel_init": 3},
        {"head_dim": 0}, {"kv_heads": "2"}, {"heads": None}, {"heads": True}, {"window": 0},
        {"window": 2.5}, {"soft_cap": 0.0}, {"dropout": 2.0}, {"block": 0},
        {"implementation": "xla", "block": 2}, {"implementation": "xla", "soft_cap": 2.0},
        {"implementation": "xla", "dropout": 0.1}, {"implementation": "xla", "distances": jnp.abs},
    ],
)  # fmt: skip
def test_wrong_options(wrong):
    with pytest.raises(errors.OptionError, match="^attention: "):
        fnn.attention(**{"features": 8, "heads": 4, **wrong})
    if not set(wrong) & {"head_dim", "implementation", "kernel_init"}:
        with pytest.raises(errors.OptionError, match="^(attention|transformer_block): "):
            fnn.transformer_block(**{"features": 8, "heads": 4, **wrong})


X, IDS = jnp.ones((2, 3, 4)), jnp.ones((2, 3), int)


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
        ((X, None, None, X[..., 0]), errors.DtypeError, "net: expected segments of integers"),
        ((X, None, None, X.astype(int)), errors.ShapeError, r"net: expected segments .* \(2, 3\)"),
        ((X, X, None, IDS), errors.InputError, "net: expected no memory with segments, .* a mask"),
        ((X, None, None, None, IDS), errors.DtypeError, "net: expected bias of a floating dtype"),
        ((X, None, None, None, X), errors.ShapeError, r"net: expected bias .* \(2, 2, 3, 3\)"),
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
    for options in ({"window": 2}, {"distances": fnn.alibi(2)}):
        with pytest.raises(errors.InputError, match=f"no memory with {next(iter(options))}"):
            fnn.attention(4, 2, **options).specs(X, X)
    with pytest.raises(errors.ShapeError, match="transformer_block: expected last axis 8"):
        fnn.transformer_block(8, 2).init(jax.random.key(0), X)
