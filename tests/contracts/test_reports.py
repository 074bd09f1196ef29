"""Bug reports of other libraries, tried here: each names its report and asks for the right value.

Only what no other test of a part asks for stands here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import losses, metrics, optim
from tests.support import asarray

key = jax.random.key


def close(got, want, tolerance=1e-6):
    np.testing.assert_allclose(np.float64(got), want, rtol=tolerance, atol=tolerance)


# --- layers


def test_group_norm_of_a_narrow_float_with_a_tiny_eps():
    """keras-team/keras#22586: eps below the least float16 counts, and squares do not overflow."""
    x = np.random.default_rng(0).uniform(5e4, 6.5e4, (1, 4, 4, 8)).astype(np.float16)
    net = fnn.group_norm(2, 2, eps=1e-12, use_scale=False, use_bias=False)
    groups = np.float64(x).reshape(1, 16, 2, 4)
    want = groups - groups.mean((1, 3), keepdims=True)
    want /= groups.std((1, 3), keepdims=True)
    close(net({}, asarray(x)), want.reshape(x.shape), 2e-3)


def test_layer_norm_far_from_zero():
    """pytorch/pytorch#51102: a mean of 2000 leaves the variance its digits."""
    x = (2000 + np.random.default_rng(0).normal(size=(5, 4))).astype(np.float32)
    exact = np.float64(x)
    want = exact - exact.mean(-1, keepdims=True)
    want /= np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    close(fnn.layer_norm(use_scale=False, use_bias=False)({}, asarray(x)), want)


def test_batch_norms_before_training_keep_the_scale():
    """patrick-kidger/equinox#955, google-deepmind/dm-haiku#361: the first variance is 1, not 0."""
    net, x = fnn.serial(*[fnn.batch_norm() for _ in range(5)]), jnp.ones((2, 3))
    params, state = net.init(key(0), x)
    close(net(params, x, state=state), 1.0, 1e-4)


def test_recomputing_updates_batch_statistics_once():
    """pytorch/pytorch#96136: a batch norm that is computed again moves its statistics once."""
    net, x = fnn.remat(fnn.batch_norm(momentum=0.5)), asarray([[0.0], [4.0]])
    params, state = net.init(key(0), x)

    def loss(params):
        y, after = net.apply(params, state, x, train=True)
        return y.sum(), after

    after = jax.grad(loss, has_aux=True)(params)[1]
    close(after["mean"], [1.0])  # 0.5 0 + 0.5 2
    close(after["var"], [2.5])  # 0.5 1 + 0.5 4


@pytest.mark.parametrize("strides", [1, 2])
def test_max_pool_of_nan_and_minus_infinity(strides):
    """pytorch/pytorch#7645, #20465: NaN is the maximum, and a window of -inf has a first place."""
    pool = fnn.max_pool((2,), strides=strides)
    nan, low = asarray([[jnp.nan], [0.0]]), jnp.full((2, 1), -jnp.inf)
    assert jnp.isnan(pool({}, nan)).all()
    assert (pool({}, low) == -jnp.inf).all()
    slope = jax.grad(lambda x: jnp.where(jnp.isinf(pool({}, x)), pool({}, x), 0).sum())(low)
    np.testing.assert_array_equal(slope, [[1.0], [0.0]])


def test_means_of_narrow_floats_whose_sum_is_too_large():
    """google/flax#2401: padding is not counted; and a mean of float16 is formed in float32."""
    x = jnp.full((1, 4, 4, 1), 6e4, jnp.float16)
    for pool in (fnn.global_avg_pool(2), fnn.adaptive_avg_pool((1, 1)), fnn.avg_pool((4, 4))):
        assert float(pool({}, x).ravel()[0]) == 6e4 // 32 * 32
    edge = fnn.avg_pool((2,), strides=1, padding="SAME")({}, asarray([[1.0], [2.0]]))
    close(edge[:, 0], [1.5, 2.0])


def test_transposed_convolution_of_a_long_kernel():
    """patrick-kidger/equinox#884: length (n - 1) s + k - 2 p, and each value where it belongs."""
    net = fnn.conv_transpose(1, (16,), strides=8, padding=4, transpose_kernel=True, use_bias=False)
    kernel = jnp.arange(16.0).reshape(16, 1, 1)
    y = net({"kernel": kernel}, jnp.zeros((10, 1)).at[3].set(1.0))
    want = np.zeros(80)
    want[3 * 8 - 4 : 3 * 8 + 12] = np.arange(16)
    close(y[:, 0], want)


def test_fans_of_depthwise_and_grouped_kernels():
    """keras-team/keras#11773: the fan is what one output sums, 9 values here, and 9 * 64."""
    for net, fan in ((fnn.depthwise_conv((3, 3)), 9), (fnn.conv(512, (3, 3), groups=4), 9 * 128)):
        params, _ = net.init(key(0), (1, 4, 4, 512))
        assert abs(float(params["kernel"].std()) * fan**0.5 - 1) < 0.05


def test_cached_causal_attention_sees_all_that_is_cached():
    """google/flax#5591: one query against a cache attends to every earlier key, not the first."""
    options = {"causal": True, "rotary": 10.0}
    net, whole = fnn.attention(4, 2, cache=4, **options), fnn.attention(4, 2, **options)
    x = jax.random.normal(key(1), (1, 4, 4))
    params, state = net.init(key(0), x)
    step = jax.jit(net.apply)
    for t in range(4):
        y, state = step(params, state, x[:, t : t + 1])
    close(y[:, 0], np.asarray(whole(params, x))[:, -1])


def test_attention_of_a_row_that_sees_nothing_has_gradients():
    """pytorch/pytorch#103963, patrick-kidger/equinox#274: zeros from the heads, no NaN behind."""
    net, x = fnn.attention(4, 2), jax.random.normal(key(1), (3, 4))
    params, _ = net.init(key(0), x)
    mask = asarray([[1, 0, 1], [0, 0, 0], [1, 1, 1]], bool)
    params["out"]["bias"] = jnp.arange(4.0)

    def loss(params, x):
        y = net(params, x, None, mask)
        return (y**2).sum(), y

    grads, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(grads))
    close(y[1], np.arange(4.0))


def test_bidirectional_wherever_the_padding_is():
    """keras-team/keras#4192, #7244: padding before, after and inside changes nothing."""
    net = fnn.bidirectional(fnn.cells.gru(2), fnn.cells.gru(2))
    x, none = jax.random.normal(key(1), (3, 2)), jnp.full(2, jnp.nan)
    params, _ = net.init(key(0), (5, 2))
    want = np.asarray(jax.jit(net)(params, x))
    run = jax.jit(lambda x, mask: net(params, x, mask))
    for places in ([0, 1, 2], [2, 3, 4], [0, 2, 4]):
        mask = jnp.zeros(5, bool).at[jnp.array(places)].set(True)
        padded = jnp.tile(none, (5, 1)).at[jnp.array(places)].set(x)
        close(run(padded, mask)[jnp.array(places)], want)


def test_embedding_of_narrow_integers_and_many_equal_ones():
    """apache/mxnet#17703: 3000 gradients of a row add up in bfloat16; 255 of uint8 is a row."""
    table = {"embedding": jnp.arange(300.0).reshape(300, 1)}
    net = fnn.embedding(300, 1)
    close(net(table, asarray([200, 255], jnp.uint8))[:, 0], [200, 255])
    narrow = {"embedding": jnp.zeros((2, 1), jnp.bfloat16)}
    ids, net = jnp.zeros(3000, jnp.int32), fnn.embedding(2, 1, dtype=jnp.bfloat16)
    total = jax.grad(lambda p: net(p, ids).sum())(narrow)["embedding"]
    assert float(total[0, 0]) == 3008  # 3000 in 8 bits


def test_weight_norm_of_a_zero_row():
    """google/flax#1671: finite gradients."""
    net = fnn.weight_norm(fnn.dense(2))
    params = jax.tree.map(jnp.zeros_like, net.init(key(0), (1, 3))[0])
    assert optim.all_finite(jax.grad(lambda p: net(p, jnp.ones((1, 3))).sum())(params))


def test_repeated_and_stacked_dropout_draw_masks_of_their_own():
    """google/flax#4950: half of the half stays, and recomputing draws the same once more."""
    x = jnp.ones(4096)
    nets = fnn.repeat(fnn.dropout(0.5), 2), fnn.serial(fnn.dropout(0.5), fnn.dropout(0.5))
    for net in nets:
        y, _ = net.apply({}, {}, x, key=key(0), train=True)
        assert abs(float((y > 0).mean()) - 0.25) < 0.04
        again = fnn.remat(net)
        slope = jax.grad(lambda x, f=again: f.apply({}, {}, x, key=key(0), train=True)[0].sum())
        np.testing.assert_array_equal(jax.jit(slope)(x), y)


@pytest.mark.full
def test_rare_words_are_drawn():
    """jax-ml/jax#26974, vllm-project/vllm#45996: words e^17 rarer than the first have their share.

    Together 32,767 of them have 0.00136. Noise of 23 bits drew none of them in 12,000 draws, noise
    of more bits 17, of 16.3 expected; under this key there are three in 500.
    """
    logits = jnp.full(2**15, -17.0).at[0].set(0.0)
    cell = fnn.cells.as_cell(lambda carry, x: (carry, logits), lambda x: jnp.zeros(()))
    blank, one = jnp.zeros(501, jnp.int32), jnp.array(1)
    text = fnn.unroll_generate(cell, {}, blank, lengths=one, key=key(5)).x
    assert (text > 0).any()


# --- losses and metrics


def test_ctc_of_certain_alignments_is_not_negative():
    """google-deepmind/optax#1771, keras-team/keras#23684: true values, as 1e-15, are above 0."""
    z = jnp.stack([jnp.zeros(4), asarray([8.0, 12.0, 17.0, 20.0])], -1)[:, None].repeat(2, 1)
    loss = jax.jit(losses.ctc)(z, jnp.ones((4, 1), jnp.int32))
    assert (loss >= 0).all()
    close(loss, -np.log1p(-((1 / (1 + np.exp([8.0, 12.0, 17.0, 20.0]))) ** 2)), 2e-7)


def test_focal_without_focus_at_large_logits():
    """google-deepmind/optax#1267: gamma 0 is half the cross-entropy, gradient included."""
    value, slope = jax.value_and_grad(lambda z: losses.focal(z, jnp.array(1), 0.0, 0.5))(
        jnp.array(1000.0)
    )
    assert value == 0 and slope == 0


def test_forward_derivative_of_an_impossible_class():
    """google-deepmind/optax#1762: softmax - p, in forward mode too."""
    z, p = asarray([-jnp.inf, 0.0, 0.0]), asarray([0.0, 1.0, 0.0])
    close(jax.jacfwd(losses.softmax_cross_entropy)(z, p), [0, -0.5, 0.5])


def test_smoothing_of_ignored_labels():
    """pytorch/pytorch#73205, #70348: what is ignored has no uniform part; nothing left gives 0."""
    z = np.random.default_rng(0).normal(size=(4, 3))
    labels, mask = asarray([-100, 1, 2, -100]), asarray([False, True, True, False])
    log_q = z - np.log(np.exp(z).sum(-1, keepdims=True))
    want = [-0.8 * log_q[i, c] - 0.2 * log_q[i].mean() for i, c in ((1, 1), (2, 2))]
    z = asarray(z, jnp.float32)
    every = losses.softmax_cross_entropy(z, labels, label_smoothing=0.2, mask=mask)
    close(losses.masked_mean(every, mask), np.mean(want))
    assert losses.masked_mean(every, jnp.zeros(4, bool)) == 0


def test_direction_of_small_narrow_vectors():
    """keras-team/keras#23546: gradients of a cosine at vectors of 0.01 in float16."""
    a = np.array([2e-2, 1e-2, 1e-2, 1e-2], np.float16)
    ones = jnp.ones(4, jnp.float16)
    slope = jax.jit(jax.grad(lambda a: losses.cosine_distance(a, ones)))(asarray(a))
    exact, size = np.float64(a), np.linalg.norm(np.float64(a))
    want = -(0.5 / size - exact * (exact.sum() / 2) / size**3)
    close(slope, want, 5e-3)


def test_top_k_and_calibration_at_their_edges():
    """keras-team/keras#19995, Lightning-AI/torchmetrics#1646: NaN is no guess; sure and wrong."""
    logits = asarray([[0.1, jnp.nan, 0.5], [0.3, 0.2, 0.5]])
    assert metrics.top_k(2).value(logits, asarray([1, 0])) == 0.5
    sure = asarray([[0.0, -jnp.inf], [50.0, 0.0]])
    assert metrics.calibration_error(2).value(sure, asarray([0, 1])) == 0.5


def test_a_smaller_last_batch_counts_as_many_as_it_has():
    """tensorflow/tensorflow#38596: the mean is that of the examples, not of the batches."""
    net, tx = fnn.dense(1), optim.sgd(0.1)
    x, y = np.arange(7.0, dtype=np.float32)[:, None], np.float32([0, 0, 0, 0, 0, 0, 9])[:, None]
    ts = fnn.train.init(net, tx, key(0), (1, 1))
    data = {"image": x, "label": y}
    found = fnn.train.evaluator(net, data, {"loss": losses.squared_error}, batch_size=3)(ts)
    close(found["loss"], np.mean((np.float64(net(ts.params, x)) - y) ** 2), 1e-5)


# --- optimizers and schedules


def test_clipping_at_zero():
    """google-deepmind/optax#1752, tensorflow/tensorflow#22048: no NaN; slope 1 if not clipped."""
    zero = jnp.zeros(2)
    np.testing.assert_array_equal(optim.clip_by_global_norm(0.0).update(zero, ())[0], zero)
    tx = optim.clip_by_global_norm(1.0)
    np.testing.assert_array_equal(jax.jacobian(lambda g: tx.update(g, ())[0])(zero), np.eye(2))


@pytest.mark.parametrize(
    "build", [optim.scale_by_adam, optim.scale_by_rms, optim.scale_by_stddev, optim.sm3]
)
def test_zero_gradients_of_narrow_and_scalar_params(build):
    """google-deepmind/optax#1755, #1784, #1736: an eps below float16's least; no axes."""
    tx = build(0.1) if build is optim.sm3 else build()
    params = {"scalar": jnp.ones((), jnp.float16), "none": jnp.ones((0, 3), jnp.float16)}
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["scalar"] == 0 and updates["none"].shape == (0, 3)


def test_whole_numbers_as_decays():
    """google-deepmind/optax#46, jax-ml/jax#2517: b1=0 is b1=0.0 at each of 130 steps."""
    tx, ones = optim.adam(0.1, b1=0, b2=0), jnp.ones((130, 1))
    _, updates = jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(ones[0]), ones)
    close(updates, -0.1)


def test_schedules_at_their_ends():
    """google-deepmind/optax#1403, pytorch/pytorch#17913, #23480, #32898: no NaN, no count lost."""
    s = optim.schedules
    n = jnp.arange(8)
    got = jax.jit(lambda n: [f(n) for f in (
        s.one_cycle(3, 0.04, pct_start=0.2), s.one_cycle(10, 1.0, pct_start=0.0), s.cosine(1.0, 3),
        s.restarts(1.0, 1, t_mult=2), s.warmup_cosine(0.0, 1.0, 5, 5),
    )])(n)  # fmt: skip
    assert np.isfinite(got[0]).all()
    close(got[1][0], 1)
    close(got[2], [1, 0.75, 0.25, 0, 0, 0, 0, 0])
    close(got[3], [1, 1, 0.5, 1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 1])
    close(got[4], [0, 0.2, 0.4, 0.6, 0.8, 0, 0, 0])


def test_cosine_over_a_billion_steps():
    """pytorch/pytorch#20405: counted in tokens, where float32 has no longer every count."""
    steps = 2**31 - 1
    counts = np.array([0, 2**24 + 1, steps // 3, steps - 1, steps])
    got = optim.schedules.cosine(1.0, steps)(asarray(counts, jnp.int32))
    close(got, (1 + np.cos(np.pi * counts / steps)) / 2, 1e-7)


def test_schedule_free_begins_with_the_first_rate():
    """google-deepmind/optax#1744: the first step is made with schedule(0)."""
    tx, p = optim.schedule_free_sgd(lambda count: jnp.where(count == 0, 0.25, 1.0)), jnp.zeros(1)
    close(tx.update(jnp.ones(1), tx.init(p), p)[0], -0.25)


def test_a_skipped_step_is_no_step_of_the_schedule():
    """mlnomadpy/flaxchat#6: momentum and count go on from the last good step."""
    rate = optim.schedules.linear(1.0, 0.0, 4)
    tx = optim.skip_nonfinite(optim.sgd(rate, momentum=0.9))
    p = jnp.zeros(1)
    opt_state, steps = tx.init(p), []
    for g in (1.0, jnp.nan, 1.0):
        u, opt_state = tx.update(jnp.array([g]), opt_state, p)
        steps.append(float(u[0]))
    close(steps, [-1, 0, -0.75 * 1.9])
