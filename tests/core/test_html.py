"""What notebooks show of networks and declarations is well formed, escaped and bounded."""

import jax.numpy as jnp

import fnn
from fnn.core import html
from tests.parsed_html import Parsed

HOSTILE = "<script>alert('\"&')</script>"


def test_a_network_is_a_folded_tree_of_names_and_kinds():
    net = fnn.serial(fnn.dense(3), body=fnn.residual(fnn.serial(fnn.dense(3), jnp.tanh)))
    found = Parsed(net._repr_html_())
    assert [t for t in found.texts if t.strip()] == [
        "serial", "dense1", "dense", "body", "residual", "layer", "serial", "dense1", "dense",
        "tanh_1", "tanh",
    ]  # fmt: skip
    assert found.count("details") == 3  # the layers that have sublayers
    assert Parsed(fnn.dense(3)._repr_html_()).count("details") == 0


def test_text_is_escaped():
    odd = fnn.leaf(HOSTILE, lambda x: ({}, {}), lambda p, s, x, *, key, train: (x, s))
    for net in (odd, fnn.serial(a=odd)):
        assert HOSTILE in Parsed(net._repr_html_()).texts
    declared = fnn.Param((2,), fnn.initializers.zeros, kind=HOSTILE, axes=(HOSTILE,))
    texts = Parsed(declared._repr_html_()).texts
    assert texts.count(HOSTILE) == 2 and "(2,)" in texts and "float32" in texts
    for text in (HOSTILE, "a & b", '"', "</td>"):
        assert Parsed(html.page(html.table([text], [[html.text(text)]]))).texts == [text, text]


def test_a_declaration_says_what_it_declares():
    spec = fnn.repeat(fnn.dense(3), 5).specs((2, 3))[0]["kernel"]
    rows = dict(Parsed(spec._repr_html_()).rows(2))
    assert rows == {"shape": "(5, 3, 3)", "dtype": "float32", "kind": "kernel", "axes": "in, out",
                    "stack": "(5,)", "init": "lecun_normal()"}  # fmt: skip


def test_what_is_not_shown_is_counted():
    wide = fnn.serial(*[jnp.tanh] * 1000)
    found = Parsed(wide._repr_html_())
    assert "… and 601 more" in found.texts  # 400 shown, the network itself one of them
    nested = fnn.serial(*[fnn.serial(jnp.tanh, jnp.sin)] * 300)
    texts = Parsed(nested._repr_html_()).texts
    left = sum(int(t.split()[2]) for t in texts if t.startswith("…"))
    assert texts.count("tanh") + texts.count("sin") + texts.count("serial") + left == 901
