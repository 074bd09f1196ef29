"""Pictures of networks: the flow is what the body says, and nothing in the picture overlaps."""

import itertools

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fnn
from fnn import errors
from fnn.analysis.diagram.flow import flow
from fnn.analysis.diagram.graph import Edge, Graph, Node, Value, join
from fnn.analysis.diagram.layout import Style, plan
from fnn.analysis.diagram.operations import merged
from fnn.analysis.diagram.rows import Size
from fnn.analysis.plot import network

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def arrows(net, *xs, depth=1, path="", train=False, merge=False):
    """{(scope, source, target, shape as used)}, with "" for the ports of a body."""

    def of(node, scope):
        assert node.graph is not None
        if merge:
            merged(node.graph)
        edges = node.graph.edges.values()
        found = {(scope, e.source.label, e.target.label, e.text) for e in edges}
        below = [of(n, f"{scope}/{n.label}".strip("/")) for n in node.graph.nodes if n.graph]
        return found.union(*below)

    return of(flow(net, xs, {}, depth, path, train).shown, "")


f23, f24 = "(2, 3) float32", "(2, 4) float32"


@fnn.compose(up=fnn.dense(4), drop=fnn.dropout(0.5), down=fnn.dense(3), never=fnn.dense(3))
def block(f, x, t):
    h = f.up(x) * 2
    f.never(x)  # on which no output depends
    return x + f.down(f.drop(h).reshape(1, 2, 4)[0]), jnp.concatenate([t, t])


def test_the_flow_is_what_the_body_says():
    assert arrows(block, (2, 3), (5,)) == {
        ("", "x", "up", f23), ("", "up", "× 2", f24), ("", "× 2", "drop", f24),
        ("", "drop", "down", f24), ("", "x", "+", f23), ("", "down", "+", f23),
        ("", "+", "y[0]", f23), ("", "t", "concat", "(5,) float32"),
        ("", "concat", "y[1]", "(10,) float32"),
    }  # fmt: skip


def test_bodies_are_shown_to_a_depth_with_arrows_through_their_ports():
    inner = fnn.serial(fnn.dense(4), fnn.dense(3))
    net = fnn.serial(a=fnn.residual(inner), b=fnn.dense(2))
    f22 = "(2, 2) float32"
    outside = {("", "x", "a", f23), ("", "a", "b", f23), ("", "b", "y", f22)}
    assert arrows(net, (2, 3)) == outside
    body = {("a", "", "layer", f23), ("a", "", "+", f23), ("a", "layer", "+", f23),
            ("a", "+", "", f23)}  # fmt: skip
    assert arrows(net, (2, 3), depth=2) == outside | body
    deepest = {("a/layer", "", "dense1", f23), ("a/layer", "dense1", "dense2", f24),
               ("a/layer", "dense2", "", f23)}  # fmt: skip
    assert arrows(net, (2, 3), depth=3) == outside | body | deepest == arrows(net, (2, 3), depth=9)


def test_it_looks_into_scans_calls_and_recomputation():
    inner = fnn.serial(fnn.dense(3), jax.jit(jnp.tanh))
    for net in (fnn.repeat(inner, 2), fnn.remat(inner), fnn.cast(inner, jnp.bfloat16)):
        found = {(a, b) for _, a, b, _ in arrows(fnn.serial(net), (2, 3), depth=2)}
        assert ("dense1", "tanh_1") in found and ("", "dense1") in found

    @fnn.compose(a=fnn.dense(3))
    def looped(f, x):
        return jax.lax.cond(x[0, 0] > 0, lambda h: f.a(h), lambda h: h * 3, jnp.sin(x))

    edges = {(a, b) for _, a, b, _ in arrows(looped, (2, 3), merge=True)}
    assert edges == {("x", "sin"), ("sin", "a"), ("sin", "× 3"), ("a", "y"), ("× 3", "y")}


def test_shared_weights_and_two_calls_are_told():
    @fnn.compose(embed=fnn.embedding(7, 4), twice=fnn.dense(4))
    def tied(f, x):
        h = f.twice(f.twice(f.embed(x)))
        return h @ f.embed.params["embedding"].T

    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    figure = network(tied, tokens)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert "20 params" in said and "the same 20 params" in said and said.count("twice") == 2
    assert "embedding (7, 4) float32" in said
    lines = [p.get_linestyle() for p in of(figure, "arrow")]
    assert lines.count("--") == 1 and len(lines) == 6


def test_the_gradient_of_a_layer_is_a_box_of_its_own():
    @fnn.compose(energy=fnn.serial(fnn.dense(5), jnp.tanh, fnn.dense(1)), out=fnn.dense(2))
    def force(f, x):
        return f.out(jax.grad(lambda x: jnp.sin(f.energy(x)).sum())(x))

    found = {(a, b) for _, a, b, _ in arrows(force, (2, 4), depth=1)}
    assert {("x", "energy"), ("energy", "energy"), ("energy", "cos"), ("energy", "out")} < found
    figure = network(force, (2, 4))
    check_figure(figure)
    assert "gradient" in [text.get_text() for text in figure.axes[0].texts]


def test_noise_is_a_node_and_gelu_and_softmax_have_their_names():
    @fnn.compose(a=fnn.dense(4), b=fnn.dense(4), c=fnn.dense(4))
    def noisy(f, x):
        h = f.b(jax.nn.gelu(f.a(x)))
        weights = jnp.exp(h - h.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        return f.c(weights) + jax.random.normal(f.key("noise"), x.shape)

    found = {(a, b) for _, a, b, _ in arrows(noisy, (2, 4), merge=True)}
    assert found == {("x", "a"), ("a", "gelu"), ("gelu", "b"), ("b", "softmax"), ("softmax", "c"),
                     ("c", "+"), ("random", "+"), ("+", "y")}  # fmt: skip


def test_boxes_say_kind_window_params_members_and_steps():
    net = fnn.serial(
        conv1=fnn.conv(2, (3, 5)), flat=fnn.flatten(2), rnn=fnn.lstm(3),
        deep=fnn.repeat(fnn.residual(fnn.dense(3)), 6), several=fnn.ensemble(fnn.dense(2), 4),
    )  # fmt: skip
    said = [text.get_text() for text in network(net, (7, 4, 4, 1)).axes[0].texts]
    for line in ("3 × 5", "32 params", "lstm · 4 steps", "repeat × 6", "72 params",
                 "ensemble × 4", "(7, 4, 4, 2) float32", "(4, 7, 4, 2) float32"):  # fmt: skip
        assert line in said, (line, said)
    inside = network(net, (7, 4, 4, 1), depth=2)
    assert "12 params" in [text.get_text() for text in inside.axes[0].texts]  # of one member
    params, _ = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((7, 4, 4, 1)))
    total = sum(a.size for a in jax.tree.leaves(params))
    shown = [int(s.split()[0].replace(",", "")) for s in said if s.endswith("params")]
    assert sum(shown) == total


# --- nothing overlaps


def of(figure, sort):
    return [patch for patch in figure.axes[0].patches if patch.get_gid() == sort]


def check_figure(figure):
    """Texts overlap neither one another nor boxes; lines cross no box and stay in the figure."""
    figure.canvas.draw()
    width, height = figure.get_size_inches() * 72
    scale = figure.dpi / 72
    texts = [t.get_window_extent() for t in figure.axes[0].texts]
    texts = [np.array([[b.x0, b.y0], [b.x1, b.y1]]) / scale for b in texts]
    for t in texts:
        assert (t[0] >= 0).all() and (t[1] <= (width, height)).all()
    for a, b in itertools.combinations(texts, 2):
        assert not (np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]) > 1.5).all()
    boxes = [p for sort in ("layer", "op", "input", "output") for p in of(figure, sort)]
    boxes = [np.array([[p.get_x(), p.get_y()], [p.get_x() + p.get_width(),
             p.get_y() + p.get_height()]]) for p in boxes]  # fmt: skip
    for a, b in itertools.combinations(boxes, 2):
        assert not (np.minimum(a[1], b[1]) > np.maximum(a[0], b[0])).all()
    for patch in of(figure, "arrow"):
        points = patch.get_path().interpolated(1)
        points = points.to_polygons(closed_only=False)[0] if len(points) else []
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            line = np.linspace((x0, y0), (x1, y1), 20)
            assert (line >= 0).all() and (line <= (width, height)).all()
            for low, high in boxes:
                assert not ((line > low + 1.5) & (line < high - 1.5)).all(axis=1).any()


unet = fnn.compose(
    a=fnn.conv(2, (3, 3)), b=fnn.conv(2, (3, 3), strides=2), c=fnn.upsample((2, 2)),
    told=fnn.dense(2), d=fnn.conv(2, (1, 1)),
)(lambda f, x, t: (h := f.a(x) + f.told(t)[:, None, None], f.d(
    jnp.concatenate([h, f.c(f.b(h) * f.told(t)[:, None, None])], -1) + x))[1])  # fmt: skip


@fnn.compose(**{f"d{i}": fnn.dense(2) for i in range(6)})
def densely(f, x):
    hs = [x]
    for i in range(6):
        hs.append(getattr(f, f"d{i}")(jnp.concatenate(hs, -1)))
    return hs[-1]


@pytest.mark.parametrize(
    ("net", "xs", "depth"),
    [
        (unet, [(1, 4, 4, 4), (1, 3)], 1),
        (block, [(2, 3), (5,)], 1),
        (densely, [(1, 4)], 1),
        (fnn.transformer_block(8, 2, causal=True, rotary=100.0), [(1, 5, 8)], 2),
        (fnn.serial(*[fnn.dense(3), jnp.tanh] * 20), [(1, 3)], 1),
        (fnn.bidirectional(fnn.cells.serial(fnn.dense(3), fnn.cells.gru(3))), [(1, 5, 4)], 2),
        (fnn.dense(3), [(2, 4)], 1),
        (fnn.parallel(a=fnn.dense(3), b=jnp.sin, c=fnn.parallel(d=fnn.dense(2))), [(2, 4)], 2),
    ],
    ids=["unet", "block", "dense", "transformer", "long", "bidirectional", "leaf", "parallel"],
)
def test_nothing_overlaps(net, xs, depth):
    check_figure(network(net, *xs, depth=depth))


def test_a_long_chain_goes_on_in_further_columns():
    short, long = (fnn.serial(*[fnn.dense(3)] * n) for n in (4, 60))
    assert max(network(short, (1, 3)).get_size_inches()) < 6
    width, height = network(long, (1, 3)).get_size_inches()
    assert height < 16 and width > 3


@st.composite
def graphs(draw):
    """A random graph without circles."""
    n = draw(st.integers(1, 12))
    sorts = ["input", *draw(st.lists(st.sampled_from(["layer", "op"]), min_size=n, max_size=n))]
    nodes = [Node(sort, f"{i}") for i, sort in enumerate(sorts)]
    graph = Graph(nodes)
    for i, node in enumerate(nodes):
        value = Value(node, "x" * draw(st.integers(0, 20)))
        for target in draw(st.sets(st.integers(0, n), max_size=3)):
            if target > i:
                join(graph, Edge(node, nodes[target], value, False, False, value.text))
    return graph


@given(graphs(), st.lists(st.integers(20, 200), min_size=13, max_size=13))
@settings(max_examples=60, deadline=None)
def test_layouts_of_any_graph_keep_boxes_apart_and_arrows_off_them(graph, widths):
    sizes = {node: Size(w, w % 40 + 17) for node, w in zip(graph.nodes, widths, strict=False)}
    for node in graph.nodes:
        sizes[node] = Size(40, 17) if node.sort == "op" else sizes[node]
    found = plan(graph, Style(sizes.__getitem__, lambda *a: None, lambda text: 5.0 * len(text)))
    boxes = {node: np.array([[x, y], [x + w, y + h]]) for node, (x, y, w, h) in found.boxes.items()}
    assert boxes.keys() == set(graph.nodes) and len(found.paths) == len(graph.edges)
    labels = [np.array([[a.x, a.y - 4], [a.x + 5.0 * len(a.text), a.y + 4]]) for a in found.labels]
    for a, b in itertools.combinations([*boxes.values(), *labels], 2):
        assert not (np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]) > 1e-6).all()
    for corner in boxes.values():
        assert (corner > -1e-6).all() and (
            corner[1] < (found.width + 1e-6, found.height + 1e-6)
        ).all()
    for path in found.paths:
        lines = itertools.pairwise(path.points)
        for (x0, y0), (x1, y1) in lines:  # a curve stays in the box of its ends
            low, high = np.array([min(x0, x1), min(y0, y1)]), np.array([max(x0, x1), max(y0, y1)])
            for box in labels:
                assert not (np.minimum(high, box[1]) - np.maximum(low, box[0]) > 1e-6).all()
            for node, box in boxes.items():
                over = np.minimum(high, box[1]) - np.maximum(low, box[0])
                ends = node in (path.edge.source, path.edge.target)
                assert ends or not (over > 1e-6).all() and not (over[1] > 1e-6 and over[0] >= 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: network(block, (2, 3), (5,), depth=0),
        lambda: network(block, (2, 3), (5,), path="middle"),
        lambda: network(block, (2, 3)),
        lambda: network(3, (2, 3)),
    ],
)
def test_wrong_inputs_are_refused(call):
    with pytest.raises(errors.FnnError):
        call()


def test_names_are_text_and_a_layer_can_be_drawn_alone(tmp_path):
    strange = fnn.leaf("$\\frac{<b>&", lambda x: ({}, {}), lambda p, s, x, *, key, train: (x, s))
    net = fnn.serial(odd=strange, residual1=fnn.residual(fnn.dense(3)))
    figure = network(net, (2, 3), path="residual1", depth=1)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert {"odd", "layer", "+", "y", "dense"} < set(said) and "x" not in said
    figure = network(net, jnp.ones((2, 3)))
    for name in ("a.svg", "a.png"):
        figure.savefig(tmp_path / name)
    assert "$\\frac{<b>&" in [text.get_text() for text in figure.axes[0].texts]
