"""A row for every layer: the layer, and inputs for it (shapes or arrays)."""

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from fnn.core.shapes import as_struct
from tests.support import asarray


@fnn.compose(conv1=fnn.conv(4, (3, 3)), bn1=fnn.batch_norm(), drop=fnn.dropout(0.3))
def block(f, x):  # [..., H, W, 4]
    return x + jax.nn.silu(f.bn1(f.drop(f.conv1(x))))


@fnn.compose(left=fnn.dense(3), right=fnn.dense(3))
def two_inputs(f, x, y):  # [..., A], [..., B]
    return jnp.tanh(f.left(x)) * f.right(y)


@fnn.compose(shared=fnn.dense(4))
def twice(f, x):  # [..., 4]
    return f.shared(jnp.tanh(f.shared(x)))


deep = fnn.residual(fnn.serial(fnn.dense(4), fnn.batch_norm(), jnp.tanh, fnn.dropout(0.3)))

plain = fnn.residual(fnn.serial(fnn.dense(4), fnn.batch_norm(), jnp.tanh))

LAYERS = {
    "dense": (fnn.dense(3), (4, 5)),
    "dense without bias": (fnn.dense(3, use_bias=False), (2, 3, 5)),
    "conv": (fnn.conv(3, (3, 3)), (2, 5, 4, 2)),
    "conv valid, strides": (fnn.conv(3, (2, 3), strides=(2, 1), padding="VALID"), (2, 5, 4, 2)),
    "conv causal, dilated": (fnn.conv(3, (3,), padding="CAUSAL", dilation=2), (2, 6, 2)),
    "conv circular": (fnn.conv(2, (3, 3), padding="CIRCULAR"), (2, 4, 4, 1)),
    "conv reflect, groups": (fnn.conv(4, (3,), padding="REFLECT", groups=2), (2, 5, 4)),
    "conv 3d": (fnn.conv(2, (2, 2, 2), padding=1), (2, 2, 3, 2, 1)),
    "conv matmul": (fnn.conv(4, (3, 2), groups=2, strides=2, weight_grad="matmul"), (2, 5, 4, 2)),
    "conv one axis": (fnn.conv(3, (1, 1)), (2, 1, 1, 2)),
    "max_pool": (fnn.max_pool((2, 2)), (2, 4, 5, 3)),
    "max_pool large": (fnn.max_pool((6, 7), padding=((1, 0), (0, 2))), (2, 11, 12, 2)),
    "max_pool overlapping": (fnn.max_pool((3, 3), strides=2, padding="SAME"), (2, 5, 5, 2)),
    "max_pool padded": (fnn.max_pool((2,), padding=((1, 0),)), (2, 5, 2)),
    "avg_pool": (fnn.avg_pool((2, 2)), (2, 4, 4, 3)),
    "avg_pool padded": (fnn.avg_pool((3, 3), strides=1, padding="SAME"), (2, 4, 4, 2)),
    "conv_transpose": (fnn.conv_transpose(3, (3, 2), strides=(2, 1)), (2, 3, 3, 2)),
    "conv_transpose other": (
        fnn.conv_transpose(2, (2,), strides=3, padding="VALID", transpose_kernel=True),
        (2, 3, 3),
    ),
    "depthwise_conv": (fnn.depthwise_conv((3, 2), multiplier=2), (2, 4, 3, 2)),
    "separable_conv": (fnn.separable_conv(3, (3,), multiplier=2, strides=2), (2, 5, 2)),
    "local_conv": (fnn.local_conv(2, (3,), strides=2), (2, 5, 3)),
    "min_pool": (fnn.min_pool((2, 2)), (2, 4, 5, 2)),
    "min_pool overlapping": (fnn.min_pool((3,), strides=2, padding="SAME"), (2, 5, 2)),
    "sum_pool": (fnn.sum_pool((3,), strides=1, padding="SAME"), (2, 4, 2)),
    "lp_pool": (fnn.lp_pool((3,), 3.0, strides=2, padding=1), (2, 5, 2)),
    "global_avg_pool": (fnn.global_avg_pool(2), (3, 2, 3, 2)),
    "global_max_pool": (fnn.global_max_pool(2), (3, 2, 3, 2)),
    "adaptive_avg_pool": (fnn.adaptive_avg_pool((2, 3)), (2, 5, 2, 2)),
    "upsample": (fnn.upsample((2,)), (2, 3, 2)),
    "upsample cubic": (fnn.upsample((3,), "cubic"), (2, 3, 2)),
    "pixel_shuffle": (fnn.pixel_shuffle(2), (2, 3, 2, 8)),
    "pixel_unshuffle": (fnn.pixel_unshuffle(2), (2, 4, 2, 3)),
    "flatten": (fnn.flatten(2), (2, 3, 4)),
    "reshape": (fnn.reshape((2, -1)), (3, 6)),
    "sinusoidal": (fnn.sinusoidal(4), (2, 3)),
    "positional_encoding": (fnn.positional_encoding(), (2, 3, 4)),
    "dropout": (fnn.dropout(0.4), (4, 6)),
    "batch_norm": (fnn.batch_norm(), (6, 2, 3)),
    "batch_norm bare": (fnn.batch_norm(use_scale=False, use_bias=False), (6, 3)),
    "layer_norm": (fnn.layer_norm(), (2, 3, 5)),
    "rms_norm": (fnn.rms_norm(), (4, 5)),
    "group_norm": (fnn.group_norm(2, spatial_axes=2), (2, 3, 2, 4)),
    "instance_norm": (fnn.instance_norm(spatial_axes=1), (2, 5, 3)),
    "spatial_dropout": (fnn.spatial_dropout(0.4, spatial_axes=2), (2, 3, 2, 4)),
    "drop_path": (fnn.drop_path(0.4, 2), (6, 3, 2)),
    "alpha_dropout": (fnn.alpha_dropout(0.4), (4, 6)),
    "gaussian_noise": (fnn.gaussian_noise(0.3), (4, 6)),
    "prelu": (fnn.prelu(), (2, 3, 5)),
    "bilinear": (fnn.bilinear(3), (2, 3, 4), (2, 3, 2)),
    "embedding": (fnn.embedding(7, 3), jnp.arange(10).reshape(2, 5) % 7),
    "embedding in a network": (
        fnn.serial(fnn.embedding(5, 3), fnn.layer_norm(), fnn.dense(2)),
        jnp.arange(6, dtype=jnp.uint8).reshape(2, 3) % 5,
    ),
    "parameter": (fnn.parameter((2, 3), fnn.initializers.ones),),
    "attention": (fnn.attention(4, 2), (2, 3, 5)),
    "attention to memory": (
        fnn.attention(4, 2, kv_heads=1),
        (2, 3, 4),
        (2, 5, 3),
        jnp.arange(30).reshape(2, 3, 5) % 4 > 0,
    ),
    "attention causal, rotary": (fnn.attention(4, 2, causal=True, rotary=10.0), (2, 3, 4)),
    "transformer_block": (fnn.transformer_block(4, 2, gated=True), (2, 3, 4)),
    "parallel": (fnn.parallel(fnn.dense(2), act=jnp.tanh), (4, 3)),
    "residual": (fnn.residual(fnn.dense(3), fnn.dense(3)), (4, 2)),
    "repeat": (fnn.repeat(deep, 3), (6, 4)),
    "repeat remat": (fnn.repeat(fnn.remat(plain), 2), (6, 4)),
    "repeat weight_norm": (fnn.repeat(fnn.weight_norm(fnn.dense(4)), 2), (3, 4)),
    "rnn_cell": (fnn.cells.simple_rnn(3, learned_carry=True), (2, 3), (2, 4)),
    "lstm_cell": (fnn.cells.lstm(3), ((2, 3), (2, 3)), (2, 4)),
    "lstm_cell with all": (
        fnn.cells.lstm(3, peepholes=True, projection=2, layer_norm=True, learned_carry=True),
        ((2, 3), (2, 2)),
        (2, 4),
    ),
    "gru_cell": (fnn.cells.gru(3), (2, 3), (2, 4)),
    "gru_cell reset before": (fnn.cells.gru(3, reset_after=False, use_bias=False), (2, 3), (2, 4)),
    "mgu_cell": (fnn.cells.mgu(3), (2, 3), (2, 4)),
    "conv_lstm_cell": (fnn.cells.conv_lstm(2, (3,)), ((2, 4, 2), (2, 4, 2)), (2, 4, 1)),
    "stack": (
        fnn.cells.serial(
            fnn.dense(3), fnn.cells.gru(3), fnn.dropout(0.3), a=fnn.residual(fnn.cells.mgu(3))
        ),
        {"gru_cell1": (2, 3), "a": (2, 3)},
        (2, 4),
    ),
    "zoneout": (fnn.cells.zoneout(fnn.cells.lstm(3), (0.5, 0.1)), ((2, 3), (2, 3)), (2, 4)),
    "rnn": (fnn.rnn(fnn.cells.simple_rnn(3), unroll=2, return_carry=True), (2, 5, 4)),
    "rnn masked": (
        fnn.rnn(fnn.cells.gru(3, recurrent_dropout=0.3), return_sequence=False),
        (2, 4, 2),
        asarray([[1, 0, 1, 1], [1, 1, 0, 0]], bool),
    ),
    "rnn reset": (
        fnn.rnn(fnn.cells.lstm(2, learned_carry=True), reverse=True, checkpoint_every=3),
        (2, 4, 2),
        asarray([[1, 1, 0, 1], [1, 1, 1, 0]], bool),
        ((2, 2), (2, 2)),
        asarray([[1, 0, 1, 1], [0, 1, 0, 0]], bool),
        asarray([3, 4]),
    ),
    "bidirectional": (
        fnn.bidirectional(fnn.cells.gru(2), fnn.cells.simple_rnn(2), "mul"),
        (2, 3, 2),
        asarray([[1, 0, 0], [1, 1, 1]], bool),
    ),
    "lstm layers": (fnn.lstm(2, layers=2, dropout=0.3, return_carry=True), (2, 3, 2)),
    "lru": (
        fnn.lru(2, 3, return_carry=True),
        (2, 5, 2),
        asarray([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool),
        ((2, 3), (2, 3)),
    ),
    "ensemble": (fnn.serial(fnn.ensemble(plain, 3), lambda y: y.mean(0)), (6, 4)),
    "remat": (fnn.remat(plain), (6, 4)),
    "weight_norm": (fnn.weight_norm(fnn.conv(3, (2,))), (2, 4, 2)),
    "serial": (
        fnn.serial(
            fnn.conv(4, (3, 3)), jax.nn.gelu, fnn.avg_pool((2, 2)), fnn.flatten(3), fnn.dense(2)
        ),
        (2, 4, 4, 1),
    ),
    "compose": (block, (2, 4, 4, 4)),
    "compose nested": (fnn.serial(fnn.dense(4), twice, out=fnn.dense(1)), (3, 2)),
    "two inputs": (two_inputs, (4, 2), (4, 3)),
}


HEAVY = (  # made of others in the table: in `make test-full` alone
    "attention causal, rotary", "attention to memory", "bidirectional", "compose",
    "compose nested", "conv valid, strides", "conv_lstm_cell", "separable_conv", "serial",
    "gru_cell reset before",
    "ensemble", "lru", "lstm layers", "lstm_cell with all", "max_pool large", "repeat remat",
    "repeat weight_norm", "rnn masked", "rnn reset", "stack", "transformer_block", "zoneout",
)  # fmt: skip

VARIANTS = (  # whose rules others in the table have, and files of their own test
    "alpha_dropout", "batch_norm bare", "conv 3d", "conv causal, dilated", "conv circular",
    "conv matmul", "conv one axis", "conv reflect, groups", "conv_transpose other", "drop_path",
    "instance_norm", "lp_pool", "mgu_cell", "min_pool overlapping", "remat", "rnn_cell",
    "spatial_dropout", "sum_pool", "upsample cubic", "weight_norm",
)  # fmt: skip


def inputs(shapes, seed=1):
    """Arrays like a row's inputs; those that are arrays stay."""

    def draw(x):
        if isinstance(x, jax.Array):
            return x
        return normal(seed, x.shape, x.dtype)

    def is_one(x):
        return hasattr(x, "shape") or (type(x) is tuple and all(isinstance(d, int) for d in x))

    return tuple(
        jax.tree.map(
            lambda x: draw(x if isinstance(x, jax.Array) else as_struct(x)), x, is_leaf=is_one
        )
        for x in shapes
    )


def normal(seed, shape, dtype):
    """Standard normal values, drawn by NumPy: no program for each shape."""
    return asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def floats(tree):
    return [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]


def total(y):
    return _total(floats(y))


@jax.jit
def _total(leaves):
    return sum((jnp.sum(jnp.sin(a.astype(jnp.float32))) for a in leaves), jnp.float32(0))
