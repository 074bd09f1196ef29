"""Attention whole and in blocks of queries, against the formula, with its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn.analysis.flops import count_flops
from fnn.layers.attention import blocks as attention_blocks
from fnn.layers.attention import cpu_pieces
from fnn.layers.attention.blocks import size_of
from fnn.layers.attention.products import attend
from fnn.layers.attention.rows import Rule
from tests.layers.attention.support import MASKS, SEGMENTS, S, formula, inputs
from tests.support import asarray, but_full

TABLE = np.random.default_rng(5).normal(size=(4, 2 * S - 1))  # biases [N, distances]


def drawn(shape):
    return np.random.default_rng(1).normal(size=shape)


def by_distance(distance):
    return TABLE[:, distance + S - 1]


CASES = {  # options, and the sizes of blocks
    **{
        f"{masked}, {'past' if causal else 'all'}": (
            {"mask": MASKS[masked], "causal": causal},
            (100, sizes[causal]),
        )
        for masked, sizes in zip(MASKS, ((3, 2), (2, 1), (1, 3), (3, 2), (2, 6)), strict=True)
        for causal in (False, True)
    },
    "window of the past": ({"causal": True, "window": 3}, (100, 1, 2, 3)),
    "window": ({"window": 2}, (100, 3)),
    "window of one": ({"window": 1, "causal": True, "mask": MASKS["queries"]}, (2,)),
    "window of masked keys": ({"window": 3, "mask": MASKS["keys"]}, (4,)),
    "window of masks": ({"window": 4, "causal": True, "mask": MASKS["each"]}, (2,)),
    "long window": ({"window": 6, "causal": True, "mask": MASKS["keys"]}, (2,)),
    "segments": ({"segments": SEGMENTS}, (100, 3)),
    "cap, bias": ({"soft_cap": 1.5, "bias": (2, 4, S, S)}, (100, 2)),
    "bias of keys": ({"bias": (1, 1, 1, S), "window": 2}, (2,)),
    "distances": ({"distances": True}, (100, 2)),
    "everything": (
        {"causal": True, "window": 4, "segments": SEGMENTS, "soft_cap": 1.0, "distances": True,
         "bias": (1, 4, S, 1), "mask": MASKS["one for all"]},
        (100, 2),
    ),
}  # fmt: skip
IN_PIECES = ("none, all", "keys, past", "segments", "cap, bias", "everything")
PIECES = {  # what makes scores as small as these large
    "examples": {"SOME": 1, "LARGE": 2**24, "PIECES": 1},
    "queries": {"LARGE": 1, "FEWEST": 2},
}


def arranged(options):
    """Options for the formula, and attention with the same."""
    options = dict(options)
    for name, draw in (("mask", lambda s: drawn(s) > -0.3), ("bias", drawn)):
        if options.get(name) is not None:
            options[name] = draw(options[name])
    given = {name: options[name] for name in ("mask", "bias") if name in options}
    segments = options.get("segments")
    if options.pop("distances", False):
        options["distances"] = by_distance

    def run(q, k, v, block=None, implementation=None, given=given):
        table = (1 - S, asarray(TABLE, q.dtype)) if "distances" in options else None
        rule = Rule(
            options.get("causal", False), options.get("window"), options.get("soft_cap"), table
        )
        both = None if segments is None else (jnp.asarray(segments),) * 2
        arrays = {name: None if x is None else jnp.asarray(x) for name, x in given.items()}
        return attend(
            q, k, v, arrays.get("mask"), rule, bias=arrays.get("bias"), segments=both,
            block=block, implementation=implementation,
        )  # fmt: skip

    return options, run


@pytest.mark.parametrize("case", but_full(CASES, [case for i, case in enumerate(CASES) if i % 3]))
def test_blocks_are_the_formula_and_so_are_their_derivatives(case, monkeypatch):
    """So are all scores at once, three parts of the queries with their past alone, and some of the
    examples, or queries, at a time."""
    options, blocks = CASES[case]
    blocks += ("parts",) if options.get("causal") else ()
    blocks += ("examples", "queries") if case in IN_PIECES else ()
    options, run = arranged(options)
    args, along = inputs(0), inputs(2)
    with jax.enable_x64(True):

        @jax.jit
        def every(args, along):
            found = {}
            for block in blocks:
                monkeypatch.setattr(attention_blocks, "PARTS", {1: 3} if block == "parts" else {})
                for name, value in PIECES.get(block, {}).items():
                    monkeypatch.setattr(cpu_pieces, name, value)

                size = None if isinstance(block, str) else block

                def f(*args, block=size):
                    return run(*args, block)

                y, moved = jax.jvp(f, args, along)
                grads = jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1, 2))(*args)
                found[str(block)] = y, moved, grads
            return found

        found = jax.device_get(every(tuple(args), tuple(along)))
    wanted = formula(*args, **options)
    h = 1e-6
    moved = [
        formula(*(a + sign * h * d for a, d in zip(args, along, strict=True)), **options)
        for sign in (1, -1)
    ]
    slope = (moved[0] - moved[1]) / (2 * h)
    for block, (y, tangent, grads) in found.items():
        np.testing.assert_allclose(y, wanted, atol=1e-12, err_msg=block)
        np.testing.assert_allclose(tangent, slope, atol=1e-8, err_msg=block)
        numeric = np.sum(np.sin(moved[0]) - np.sin(moved[1])) / (2 * h)
        total = sum(np.vdot(g, d) for g, d in zip(grads, along, strict=True))
        np.testing.assert_allclose(total, numeric, atol=1e-7, err_msg=block)


def test_every_size_of_a_block_a_memory_of_another_length_and_bfloat16():
    q, k, v = inputs(3, s=5)
    options, run = arranged(CASES["everything"][0])

    @jax.jit
    def every(args, narrow):
        sizes = [attend(*args, block=block) for block in (1, 2, 3, 7, 100)]
        return sizes, [run(*narrow, block) for block in (2, None)], attend(*narrow)

    q6, k6, v6 = inputs(6)
    narrow = [asarray(a, "bfloat16") for a in (8 * q6, k6, v6)]  # scores beyond bfloat16's digits
    sizes, halves, plain = every([np.float32(a) for a in (q, k, v)], narrow)
    for y in sizes:
        np.testing.assert_allclose(y, formula(q, k, v), atol=1e-5)
    exact = [np.float64(a) for a in narrow]
    wanted = [formula(*exact, **options)] * 2 + [formula(*exact)]
    for y, y64 in zip((*halves, plain), wanted, strict=True):
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(y), y64, atol=0.015)


def test_how_many_queries_at_once():
    """All up to 256 MiB of scores, then 64 MiB of them; of a large batch no fewer than 128."""
    for (batch, t, heads), window, size in (
        ((8, 512, 8), None, 512),
        ((1, 16384, 8), None, 128),
        ((64, 2048, 32), None, 128),
        ((1, 2**20, 8), None, 2),
        ((8, 4096, 8), 1024, 128),
        ((64, 4096, 32), 1024, 128),
    ):
        q = jax.ShapeDtypeStruct((batch, t, heads, 64), jnp.float32)
        assert size_of(q, q, Rule(causal=True), window) == size, (batch, t, heads, window)


def test_jax_nn_takes_masks_windows_segments_and_biases():
    for options in (
        {"causal": True, "window": 3},
        {"window": 3, "segments": SEGMENTS, "bias": (1, 4, 1, S), "mask": MASKS["each"]},
    ):
        options, run = arranged(options)
        q, k, v = map(np.float32, inputs(7))
        y = jax.jit(lambda *a, run=run: run(*a, implementation="xla"))(q, k, v)
        np.testing.assert_allclose(y, formula(q, k, v, **options), atol=1e-5)


def test_what_a_query_does_not_see_does_not_spoil_it():
    """NaN at a key: the outputs of those that see it alone."""
    q, k, v = (np.float32(a) for a in inputs(4))
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[:, 2], bad_v[:, 2] = np.nan, np.inf
    rules = {  # and the queries that see key 2, in both rows
        "past": ({"causal": True}, np.arange(S) >= 2),
        "window": ({"causal": True, "window": 2}, np.isin(np.arange(S), (2, 3))),
        "segments": ({"segments": SEGMENTS}, (SEGMENTS == SEGMENTS[:, 2:3]) & (SEGMENTS > 0)),
    }

    @jax.jit
    def every(q, k, v):
        return {
            name: [arranged(options)[1](q, k, v, *how) for how in ((2,), (7,), (None, "xla"))]
            for name, (options, _) in rules.items()
        }

    clean = every(q, k, v)
    for found in (every(q, bad_k, v), every(q, k, bad_v)):
        for name, (_, sees) in rules.items():
            sees = np.broadcast_to(sees, (2, S))
            for y, wanted in zip(found[name], clean[name], strict=True):
                assert np.isnan(np.asarray(y)[sees]).all()
                np.testing.assert_array_equal(np.asarray(y)[~sees], np.asarray(wanted)[~sees])


def test_derivatives_by_biases():
    """By what is added to scores itself, and by a function of distances."""
    bias, along = drawn((2, 4, S, S)), drawn((4, 2 * S - 1))
    args = inputs(0)
    with jax.enable_x64(True):

        def f(bias, table):
            rule = Rule(True, 3, distances=(1 - S, table))
            return [attend(*args, None, rule, bias=bias, block=block) for block in (2, 7)]

        @jax.jit
        def every(bias, table, moved):
            grads = jax.grad(lambda *a: sum(jnp.sum(jnp.sin(y)) for y in f(*a)), (0, 1))
            return jax.jvp(f, (bias, table), (bias, moved)), grads(bias, table)

        (_, tangents), grads = jax.device_get(every(bias, TABLE, along))
    h = 1e-6
    moved = []
    for step in (h, -h):
        table = TABLE + step * along
        options = {"bias": bias * (1 + step), "distances": lambda d, a=table: a[:, d + S - 1]}
        moved.append(formula(*args, causal=True, window=3, **options))
    for tangent in tangents:
        np.testing.assert_allclose(tangent, (moved[0] - moved[1]) / (2 * h), atol=1e-8)
    numeric = 2 * np.sum(np.sin(moved[0]) - np.sin(moved[1])) / (2 * h)
    total = np.vdot(grads[0], bias) + np.vdot(grads[1], along)
    np.testing.assert_allclose(total, numeric, atol=1e-7)


# --- dropout of weights


def test_dropped_weights_are_the_same_in_any_blocks():
    """v tells weights apart: y of a query is its row of weights."""
    t, rate = 150, 0.3  # more keys than share a random key
    q, k, _ = (np.float32(a) for a in inputs(0, (2, 1), t, t))
    v = np.broadcast_to(np.eye(t, dtype=np.float32)[None, :, None], (2, t, 1, t))

    @jax.jit
    def every(key, q, k, v):
        far, near = Rule(True), Rule(True, 40)
        pad = [(0, 0)] * 3 + [(0, t - q.shape[-1])]
        q, k = (jnp.pad(a, pad) for a in (q, k))
        return (
            [attend(q, k, v, None, rule, block=t) for rule in (far, near)],
            [
                [attend(q, k, v, None, rule._replace(dropout=(key, rate)), block=block)
                 for block in (t, small)]
                for rule, small in ((far, 64), (near, 16))
            ],
        )  # fmt: skip

    whole, dropped = jax.device_get(every(jax.random.key(3), q, k, v))
    for weights, rest in zip(whole, dropped, strict=True):
        seen = weights > 0
        factor = [np.divide(y, weights, where=seen, out=np.zeros_like(y)) for y in rest]
        kept = factor[0] > 0
        np.testing.assert_allclose(factor[0][kept], 1 / (1 - rate), rtol=1e-5)
        share = kept.sum() / seen.sum()
        assert abs(share - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / seen.sum())
        for other in factor[1:]:
            np.testing.assert_array_equal(other > 0, kept)
    for a, b in ((kept[0], kept[1]), (kept[:, :, 0], kept[:, :, 1]), (kept[:, 140], kept[:, 141])):
        assert (a != b).any(), "examples, heads and queries draw for themselves"


def test_derivatives_under_dropout_are_the_formulas():
    args, along = inputs(0), inputs(2)
    with jax.enable_x64(True):
        rule = Rule(causal=True, window=3)

        @jax.jit
        def every(key, args, along):
            def f(*args, block=2):
                return attend(*args, None, rule._replace(dropout=(key, 0.4)), block=block)

            q, k, _ = args
            eye = jnp.broadcast_to(jnp.eye(S)[None, :, None], (2, S, 2, S))
            pad = [(0, 0)] * 3 + [(0, S - q.shape[-1])]
            even = jnp.zeros_like(jnp.pad(q, pad)), jnp.pad(k, pad), eye  # all weights are alike
            moved = jax.jvp(f, args, along), jax.grad(lambda *a: jnp.sum(f(*a)), (0, 1, 2))(*args)
            return moved, f(*even, block=7)

        (forward, grads), even = jax.device_get(every(jax.random.key(3), args, along))
    seen = np.array([[min(t, 2) + 1 if 0 <= t - s < 3 else 0 for s in range(S)] for t in range(S)])
    kept = even.transpose(0, 2, 1, 3) * seen
    options = {"causal": True, "window": 3, "kept": kept}
    h = 1e-6
    np.testing.assert_allclose(forward[0], formula(*args, **options), atol=1e-12)
    moved = [
        formula(*(a + sign * h * d for a, d in zip(args, along, strict=True)), **options)
        for sign in (1, -1)
    ]
    slope = (moved[0] - moved[1]) / (2 * h)
    np.testing.assert_allclose(forward[1], slope, atol=1e-8)
    total = sum(np.vdot(g, d) for g, d in zip(grads, along, strict=True))
    np.testing.assert_allclose(total, slope.sum(), atol=1e-7)


# --- memory and time


def temporaries(t, block, window=None, segments=False):
    def loss(q, k, v, ids):
        both, rule = (ids, ids) if segments else None, Rule(True, window)
        return jnp.sum(jnp.sin(attend(q, k, v, None, rule, segments=both, block=block)))

    x = jax.ShapeDtypeStruct((1, t, 2, 16), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, t), jnp.int32)
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x, ids).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_the_number_of_queries():
    small, large = temporaries(1024, 64), temporaries(4096, 64)
    assert large < 4.5 * small
    assert large < temporaries(4096, 4096) / 10


def test_long_inputs_are_cut_by_themselves():
    """A quarter of 256 MiB of scores at once; segments make no [T, T], of 256 MiB as booleans."""
    assert temporaries(16_384, None) < 700 * 2**20 < 16_384**2 * 2 * 4
    assert temporaries(16_384, None, 256, segments=True) < 100 * 2**20


def test_time_is_linear_where_a_window_leaves_out_most_keys():
    def flops(t, window, block=None):
        x = jax.ShapeDtypeStruct((1, t, 2, 16), jnp.float32)
        return count_flops(
            jax.grad(lambda x: attend(x, x, x, None, Rule(True, window), block=block).sum()), x
        )

    assert flops(8192, 100) < 2.1 * flops(4096, 100) < 0.2 * flops(4096, None)
    assert flops(8192, 100, 16) < 2.1 * flops(4096, 100, 16) < 2.1 * flops(4096, 100)
