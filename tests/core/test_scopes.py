"""Names of layers in compiled programs, as JAX and XLA write them."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

WRITTEN_BY_JAX = set(
    "jvp transpose vmap while body closed_call eval_jaxpr checkpoint rematted_computation"
    " cond branch_0_fun branch_1_fun".split()
)


def network():
    @fnn.compose(inner=fnn.dense(4), twice=fnn.dense(4))
    def mix(f, x):
        return f.inner(f.twice(f.twice(x)))

    block = fnn.residual(fnn.serial(fnn.layer_norm(), fnn.dense(4), jnp.tanh))
    cells = fnn.cells.serial(fnn.cells.lstm(4), fnn.dense(4), fnn.cells.gru(4))
    return fnn.serial(
        image=fnn.conv(4, (3, 3)),
        mean=lambda x: x.mean(-2),  # [B, T, C]
        mix=mix,
        blocks=fnn.repeat(block, 3),
        again=fnn.serial(remat=fnn.remat(fnn.serial(fnn.dense(4), jnp.tanh))),
        heads=fnn.parallel(a=fnn.dense(4), b=fnn.dense(4)),
        join=lambda y: y["a"] + y["b"],
        members=fnn.ensemble(fnn.serial(fnn.dense(4)), 2),
        first=lambda y: y[0] * y[1],
        low=fnn.cast(fnn.serial(fnn.dense(4)), jnp.bfloat16),
        normed=fnn.weight_norm(fnn.serial(fnn.dense(4))),
        lora=fnn.lora(fnn.dense(4), 2),
        rnn=fnn.rnn(cells),
        deep=fnn.repeat(fnn.transformer_block(4, 2), 2),
    )


PATHS = """image mix/inner mix/twice blocks/layer/dense1 again/remat/dense1 heads/a heads/b
members/dense1 low/dense1 normed/dense1 lora rnn/lstm_cell1 rnn/dense1 rnn/gru_cell1
deep/attention/q deep/attention/k deep/attention/v deep/attention/out deep/up deep/down""".split()


def programs(make):
    """The compiled texts of a network and of its gradient."""
    net, x = make(), jnp.ones((2, 3, 4, 3))
    params, state = net.init(jax.random.key(0), x)

    def f(params, x):
        return (net(params, x, state=state) ** 2).sum()

    return [jax.jit(g).lower(params, x).compile().as_text() for g in (f, jax.grad(f))]


@pytest.fixture(scope="module")
def texts():
    return programs(network)


def paths_of_products(text, backward):
    """The names around each matrix product and convolution, without those that JAX writes."""
    found = set()
    for line in text.splitlines():
        name = re.search(r'op_name="([^"]*)"', line)
        if name and re.search(r" (dot|convolution)\(|/(dot|conv)_general", line):
            if ("transpose(jvp" in name[1]) == backward:
                scopes = re.sub(r"jit\(\w+\)", "", name[1].rpartition("/")[0])
                names = re.split(r"[/()]+", scopes)
                found.add("/".join(n for n in names if n and n not in WRITTEN_BY_JAX))
    return found


@pytest.mark.parametrize("path", PATHS)
def test_products_of_every_combinator_carry_the_path_of_their_layer(texts, path):
    forward, backward = texts
    assert path in paths_of_products(forward, False)
    assert path in paths_of_products(backward, False)
    again = {p.replace("again/remat/again/remat", "again/remat")  # as JAX names a checkpoint
             for p in paths_of_products(backward, True)}  # fmt: skip
    assert path in again


def test_every_product_of_the_network_has_a_path(texts):
    for text, backward in ((texts[0], False), (texts[1], False), (texts[1], True)):
        roots = {path.split("/")[0] for path in paths_of_products(text, backward)}
        assert roots <= {path.split("/")[0] for path in PATHS}


def test_names_change_the_program_in_nothing_but_names(monkeypatch):
    def make():
        return fnn.serial(
            a=fnn.dense(4), b=fnn.repeat(fnn.residual(fnn.dense(4)), 2), c=fnn.rnn(fnn.cells.gru(3))
        )

    def bare(text):
        text = re.sub(r", metadata=\{[^}]*\}", "", text)
        return text[: text.find("\n\nFileNames")] + text[text.find("\n%") :]

    named = list(map(bare, programs(make)))
    monkeypatch.setattr(jax, "named_scope", lambda name: contextlib.nullcontext())
    assert named == list(map(bare, programs(make)))


def test_a_layer_called_eagerly_leaves_no_scope_open_even_if_it_raises():
    def fail(x):
        raise ValueError("no")

    net = fnn.serial(a=lambda x: x + 1, b=fail)
    with pytest.raises(ValueError, match="no"):
        net({}, jnp.ones(2))
    text = jax.jit(lambda x: jnp.sin(x)).lower(np.float32(1)).compile().as_text()
    assert "/a" not in text and "/b/" not in text
