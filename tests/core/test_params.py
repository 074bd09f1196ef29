"""The sampler: distributions, bitwise agreement of all ways to run it, and what it compiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fnn
from fnn import errors, initializers
from fnn.core.declarations import Derived, Param
from fnn.core.params import draw

SHAPE = (3, 3, 48, 64)

PAIRS = {
    "normal": (initializers.normal(0.3), jax.nn.initializers.normal(0.3)),
    "truncated": (initializers.truncated_normal(0.3), jax.nn.initializers.truncated_normal(0.3)),
    "truncated, bounds": (
        initializers.truncated_normal(0.3, -1.0, 3.0),
        jax.nn.initializers.truncated_normal(0.3, lower=-1.0, upper=3.0),
    ),
    "uniform": (initializers.uniform(0.3), jax.nn.initializers.uniform(0.3)),
    "orthogonal": (initializers.orthogonal(2.0), jax.nn.initializers.orthogonal(2.0)),
    "zeros": (initializers.zeros, jax.nn.initializers.zeros),
    "constant": (initializers.constant(0.7), jax.nn.initializers.constant(0.7)),
}
for name in (
    "lecun_normal",
    "lecun_uniform",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
):
    PAIRS[name] = getattr(initializers, name)(), getattr(jax.nn.initializers, name)()
for mode in ("fan_in", "fan_out", "fan_avg", "fan_geo_avg"):
    for distribution in ("normal", "truncated_normal", "uniform"):
        PAIRS[f"{mode} {distribution}"] = (
            initializers.variance_scaling(1.7, mode, distribution),
            jax.nn.initializers.variance_scaling(1.7, mode, distribution),
        )


@pytest.mark.parametrize("name", PAIRS)
def test_equal_in_distribution_to_jax(name):
    ours, theirs = (f(jax.random.key(1), SHAPE, jnp.float32) for f in PAIRS[name])
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert stats.ks_2samp(np.ravel(ours), np.ravel(theirs)).pvalue > 1e-3


def test_the_test_of_distributions_can_fail():
    a = initializers.normal(0.3)(jax.random.key(1), SHAPE)
    b = jax.nn.initializers.normal(0.33)(jax.random.key(1), SHAPE)
    assert stats.ks_2samp(np.ravel(a), np.ravel(b)).pvalue < 1e-3


def test_other_fan_axes():
    ours = initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=1)
    drawn = ours(jax.random.key(0), (50, 30, 7))
    np.testing.assert_allclose(drawn.std(), (1 / (50 * 7)) ** 0.5, rtol=0.03)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 3, 4), (5, 5)])
def test_orthogonal(shape):
    q = np.asarray(initializers.orthogonal()(jax.random.key(0), shape)).reshape(-1, shape[-1])
    gram = q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)


def test_orthogonal_is_uniform():
    """The entry of a uniform 2 x 2 orthogonal matrix is the cosine of a uniform angle."""
    specs = {"q": Param((2, 2), initializers.orthogonal(), stack=(4000,))}
    q = draw(jax.random.key(0), specs)["q"]
    angles = np.arccos(np.clip(q[:, 0, 0], -1, 1))
    assert stats.kstest(angles, "uniform", (0, np.pi)).pvalue > 1e-3
    assert abs(np.linalg.det(q).mean()) < 0.06  # rotations and reflections alike


def test_hashable_and_equal_by_value():
    assert initializers.lecun_normal() == initializers.lecun_normal()
    assert len({f for f, _ in PAIRS.values()}) > 12


SPECS = {
    "normal": Param((9, 5), initializers.normal(0.01)),
    "kernel": Param((40, 50), initializers.lecun_normal()),
    "uniform": Param((7,), initializers.uniform(0.123)),
    "stacked": Param((30, 40), initializers.glorot_uniform(), stack=(3,)),
    "half": Param((33, 5), initializers.he_normal(), jnp.bfloat16),
    "orthogonal": Param((6, 4), initializers.orthogonal(1.3), stack=(2, 2)),
    "empty": Param((0, 4), initializers.normal()),
    "ones": Param((4,), initializers.ones, stack=(2,)),
    "nested": {"foreign": Param((5, 6), jax.nn.initializers.normal(1.0), stack=(2,))},
    "derived": Derived(
        lambda t: {"largest": jnp.abs(t["v"]).max(0), "v": t["v"]},
        {"v": Param((4, 3), initializers.normal(1.0))},
    ),
    "plain": Derived(lambda w: -w, Param((3,), initializers.normal(1.0))),
}


@pytest.fixture(scope="module")
def drawn():
    return draw(jax.random.key(5), SPECS)


def assert_same_bits(one, two):
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.bits
def test_jit_gives_the_same_bits(drawn):
    assert_same_bits(jax.jit(lambda key: draw(key, SPECS))(jax.random.key(5)), drawn)
    assert_same_bits(jax.jit(lambda: draw(jax.random.key(5), SPECS))(), drawn)


@pytest.mark.bits
@pytest.mark.parametrize("jit", [False, True])
def test_vmap_gives_the_same_bits(drawn, jit):
    keys = jnp.stack([jax.random.key(4), jax.random.key(5), jax.random.key(6)])
    run = jax.vmap(lambda key: draw(key, SPECS))
    many = (jax.jit(run) if jit else run)(keys)
    assert_same_bits(jax.tree.map(lambda a: a[1], many), drawn)


def test_a_legacy_key_draws_the_same(drawn):
    assert_same_bits(draw(jax.random.PRNGKey(5), SPECS), drawn)


def test_a_value_depends_on_its_path_and_member_alone(drawn):
    some = {
        "stacked": Param((30, 40), initializers.glorot_uniform(), stack=(2,)),
        "kernel": SPECS["kernel"],
    }
    again = draw(jax.random.key(5), some)
    assert_same_bits(again["kernel"], drawn["kernel"])
    assert_same_bits(again["stacked"], drawn["stacked"][:2])
    assert not jnp.array_equal(drawn["stacked"][0], drawn["stacked"][1])
    flat = np.ravel(drawn["stacked"])
    assert len(np.unique(flat)) > 0.99 * flat.size  # no block is drawn twice


def test_stack_axes_are_no_fans():
    many = draw(jax.random.key(0), {"k": Param((20, 30), initializers.lecun_normal(), stack=(50,))})
    np.testing.assert_allclose(many["k"].std(), 20**-0.5, rtol=0.02)


def test_derived(drawn):
    v = drawn["derived"]["v"]
    np.testing.assert_array_equal(drawn["derived"]["largest"], np.abs(np.asarray(v)).max(0))
    plain = draw(jax.random.key(5), {"plain": SPECS["plain"].specs})
    assert_same_bits(drawn["plain"], -plain["plain"])


def test_derived_in_derived():
    inner = Derived(lambda t: t["w"] + 1, {"w": Param((3,), initializers.zeros)})
    outer = Derived(lambda t: 10 * t["inner"], {"inner": inner})
    assert draw(jax.random.key(0), {"x": outer})["x"].tolist() == [10, 10, 10]
    same = Derived(lambda w: 2 * w, Derived(lambda w: w + 1, Param((1,), initializers.ones)))
    assert draw(jax.random.key(0), {"x": same})["x"].tolist() == [4]


def test_float64():
    with jax.enable_x64(True):
        wide = initializers.normal(1.0)(jax.random.key(0), (5000,), jnp.float64)
        assert wide.dtype == jnp.float64
        assert (np.asarray(wide) != np.asarray(wide).astype(np.float32)).mean() > 0.9
        assert stats.kstest(np.asarray(wide), "norm").pvalue > 1e-3


def test_a_traced_scale_can_be_differentiated_and_swept():
    def size(scale, init=initializers.normal):
        params, _ = fnn.dense(3, kernel_init=init(scale)).init(jax.random.key(0), (1, 4))
        return jnp.sum(params["kernel"] ** 2)

    one = size(1.0)
    np.testing.assert_allclose(jax.grad(size)(2.0), 4 * one, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(size))(jnp.arange(3.0)), [0, one, 4 * one], rtol=1e-5
    )
    for init in (initializers.orthogonal, initializers.variance_scaling):
        ratio = jax.grad(functools.partial(size, init=init))(2.0) / size(1.0, init)
        power = 4 if init is initializers.orthogonal else 1
        np.testing.assert_allclose(ratio, power, rtol=1e-5)


class compiled:
    """Counts the programs that XLA compiles."""

    def __enter__(self):
        self.count = 0
        self.on = True
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def _hear(self, event, duration, **kwargs):
        if self.on and event == "/jax/core/compile/backend_compile_duration":
            self.count += 1

    def __exit__(self, *raised):
        self.on = False


def count_programs(shapes):
    specs = {
        f"p{i}": Param(shape, init, dtype, stack=stack)
        for i, shape in enumerate(shapes)
        for init, dtype, stack in [
            [
                (initializers.lecun_normal(), jnp.float32, ()),
                (jax.nn.initializers.normal(1.0), jnp.float32, ()),
                (initializers.orthogonal(), jnp.float32, (2,)),
                (initializers.he_normal(), jnp.bfloat16, (3,)),
                (initializers.zeros, jnp.float32, ()),
                (initializers.glorot_uniform(), jnp.float32, ()),
            ][i % 6]
        ]
    }
    jax.clear_caches()
    key = jax.random.key(0)
    with compiled() as programs:
        jax.block_until_ready(draw(key, specs))
    return programs.count


def test_the_number_of_compiled_programs_does_not_depend_on_the_shapes():
    few = count_programs([(3, 4 + i) for i in range(6)])
    many = count_programs([(3 + i % 5, 4 + i) for i in range(36)])
    assert 0 < many == few <= 6


def test_init_compiles_two_programs_for_a_plain_network():
    """The sampler, and reading the key."""
    net = fnn.serial(*(fnn.conv(4 + i, (3, 3)) for i in range(8)), fnn.flatten(3), fnn.dense(10))
    jax.clear_caches()
    key = jax.random.key(0)
    with compiled() as programs:
        jax.block_until_ready(net.init(key, (1, 8, 8, 1)))
    assert 1 <= programs.count <= 2


def test_foreign_initializers_work_and_are_held_to_their_word():
    def numpy_like(key, shape, dtype):
        return jnp.linspace(0, 1, 12, dtype=dtype).reshape(shape)

    params, _ = fnn.dense(4, kernel_init=numpy_like).init(jax.random.key(0), (1, 3))
    np.testing.assert_allclose(params["kernel"].ravel(), np.linspace(0, 1, 12), rtol=1e-6)
    with pytest.raises(errors.ParamsError, match="from the initializer"):
        fnn.dense(4, kernel_init=lambda k, s, d: jnp.zeros(3)).init(jax.random.key(0), (1, 3))


def test_errors_of_initializers_name_the_parameter():
    net = fnn.serial(a=fnn.serial(b=fnn.dense(3, bias_init=initializers.lecun_normal())))
    with pytest.raises(errors.OptionError, match="^a/b/bias: expected a shape of two axes"):
        net.init(jax.random.key(0), (1, 2))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: initializers.variance_scaling(1.0, "fan"), "mode to be one of fan_in"),
        (lambda: initializers.variance_scaling(1.0, "fan_in", "cauchy"), "distribution to be"),
        (lambda: initializers.lecun_normal()(jax.random.key(0), (3,)), "two axes or more"),
        (lambda: initializers.orthogonal()(jax.random.key(0), (3,)), "two axes or more"),
        (lambda: draw(0, {}), "a key"),
        (lambda: draw(jax.random.key(0), {"a": 3}), "Param and Derived"),
    ],
)
def test_errors(make, match):
    with pytest.raises(errors.FnnError, match=match):
        make()
