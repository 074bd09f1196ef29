"""Profiles, against FLOPs and bytes worked out by hand, XLA's own counts and invented traces."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.analysis import count_flops, profile
from fnn.analysis.hlo import parse
from fnn.analysis.scopes import Place, in_program, strays
from fnn.analysis.trace import own_seconds
from tests.support import refused

KEY = jax.random.key(0)


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def grad_of(net, x):
    """The value and gradient by params, and shapes of (params, x): nothing runs."""
    params, state = jax.eval_shape(lambda key: net.init(key, x.shape), KEY)
    assert not state
    return jax.value_and_grad(lambda params, x: net(params, x).sum()), params, x


def flops_of(found):
    return {(row.path, row.backward): row.flops for row in found.rows if row.flops}


def test_a_dense_network_costs_2_bmn_forward_and_4_backward_except_its_first_layer():
    b, m, n, k = 5, 3, 7, 4
    net = fnn.serial(a=fnn.dense(n, use_bias=False), c=fnn.dense(k, use_bias=False))
    assert flops_of(profile(*grad_of(net, struct(b, m)))) == {
        ("a", False): 2 * b * m * n,
        ("a", True): 2 * b * m * n,
        ("c", False): 2 * b * n * k,
        ("c", True): 4 * b * n * k,
    } | {("(loss)", False): b * k}  # the sum


def test_loops_count_every_step():
    b, t, m, n = 2, 6, 3, 4
    layers = fnn.serial(fnn.dense(m, use_bias=False), fnn.dense(m, use_bias=False))
    net = fnn.serial(
        blocks=fnn.repeat(layers, n),
        rnn=fnn.rnn(fnn.cells.serial(fnn.dense(m, use_bias=False), total())),
    )
    found = flops_of(profile(*grad_of(net, struct(b, t, m))))
    product = 2 * b * t * m * m
    for path, times in (("blocks/dense1", n), ("blocks/dense2", n), ("rnn/dense1", 1)):
        assert found[path, False] == times * product
    assert found["rnn/total1", False] == b * t * m
    assert found["rnn/dense1", True] >= 2 * product
    assert found["rnn/dense1", True] <= 2 * product + t * m * m  # the sum of the steps' gradients


def total():
    layer = fnn.cells.as_cell(lambda carry, x: (carry + x,) * 2, jnp.zeros_like)
    return fnn.wrap(layer, lambda layer, *args, **mode: layer.apply(*args, **mode), name="total")


def test_a_convolution():
    net = fnn.serial(fnn.conv(6, (3, 2), padding="VALID", use_bias=False))
    products = 2 * (2 * 5 * 6 * 6) * 3 * 2 * 4
    params, _ = net.init(KEY, (2, 7, 7, 4))
    found = profile(net, params, struct(2, 7, 7, 4))
    assert flops_of(found) == {("conv1", False): products}


def step_and_state():
    net = fnn.serial(
        stem=fnn.dense(32),
        blocks=fnn.repeat(fnn.residual(fnn.dense(32)), 3),
        rnn=fnn.rnn(fnn.cells.serial(fnn.cells.gru(8))),
        head=fnn.dense(2),
    )
    tx = fnn.optim.adam(1e-3)
    x = jnp.ones((4, 5, 16))
    ts = fnn.train.init(net, tx, KEY, x)

    def loss_fn(params, state, batch, key):
        y, state = net.apply(params, state, batch, key=key, train=True)
        return jnp.mean(y**2), (state, {})

    return fnn.train.step(loss_fn, tx), ts, x


@pytest.fixture(scope="module")
def of_step():
    step, ts, x = step_and_state()
    return profile(step, ts, x, repeats=2), count_flops(step, ts, x)


def test_the_rows_of_a_training_step_sum_to_the_whole(of_step):
    found, flops = of_step
    assert found.under("").flops == flops == sum(row.flops for row in found.rows)
    paths = list(dict.fromkeys(row.path for row in found.rows))
    assert [path for path in paths if path not in ("blocks", "rnn")] == [
        "stem", "blocks/layer", "rnn/gru_cell1", "head", "optimizer", "(loss)", "(other)"
    ]  # fmt: skip
    inner = [row for row in found.rows if row.path.startswith("blocks")]
    assert found.under("blocks").nbytes == sum(row.nbytes for row in inner)
    assert found.under("blocks", True).calls == sum(row.calls for row in inner if row.backward)
    values = 17 * 32 + 3 * 33 * 32 + (32 + 8) * 3 * 8 + 4 * 8 + 9 * 2  # of the params
    assert 8 * values < found.under("optimizer").flops < 30 * values  # Adam's moments and quotient
    assert found.wall > 0


def test_times_are_those_of_the_trace(of_step):
    found, _ = of_step
    if found.note:
        pytest.skip(found.note)
    assert all(row.seconds >= 0 for row in found.rows)
    for way in (False, True):
        assert found.under("rnn", way).seconds > 0 and found.under("blocks", way).seconds > 0


def test_the_table_is_aligned_and_complete(of_step):
    found, _ = of_step
    first, header, *lines = str(found).splitlines()
    assert header.split()[:3] == ["path", "forward", "backward"] and first.endswith("share")
    assert {row.path for row in found.rows} | {"total"} <= {line.split()[0] for line in lines}
    assert any(line.startswith("one call: ") for line in lines)
    shares = [line.rfind("%") for line in lines if line.endswith("%")]
    assert len(set(shares)) == 1
    parts = [float(line.split()[-1][:-1]) for line in lines if line.endswith("%")]
    np.testing.assert_allclose(sum(parts[:-1]), 100, atol=0.5)
    assert parts[-1] == 100


def test_arguments_are_neither_changed_nor_donated():
    @partial(jax.jit, donate_argnums=0)
    def step(params, x):
        return {"w": params["w"] - x}

    params = {"w": jnp.arange(3.0)}
    profile(step, params, np.ones(3, np.float32), repeats=1)
    np.testing.assert_array_equal(params["w"], [0, 1, 2])


def test_without_values_nothing_runs_and_the_note_says_so():
    found = profile(jnp.dot, struct(8, 8), struct(8, 8))
    assert found.wall is None and "no values" in found.note and "no values" in str(found)
    (row,) = found.rows
    assert row == ("(other)", False, 1, 2 * 8**3, 3 * 4 * 64, None)
    assert found.under("").seconds is None and "of FLOPs" in str(found)


def test_scopes_of_ones_own_are_paths_and_the_rest_is_told_apart():
    def step(w, x):
        def loss(w):
            with jax.named_scope("net"):
                y = jax.jit(jnp.dot)(x, w)
            return jnp.sum(jnp.sin(y))

        with jax.named_scope("optimizer"):
            return w - 0.1 * jax.grad(loss)(w)

    found = flops_of(profile(step, struct(3, 4), struct(2, 3)))
    assert found["optimizer/net", False] == found["optimizer/net", True] == 2 * 2 * 3 * 4
    assert found["optimizer", False] >= 2 * 12

    def apart(w, x):
        g = jax.grad(lambda w: jnp.sum(jnp.sin(x @ w)))(w)
        return w - 0.1 * g

    found = flops_of(profile(apart, struct(3, 4), struct(2, 3)))
    assert found["(loss)", True] >= 48 and found["(other)", False] == 2 * 12


def test_what_is_recomputed_counts_as_backward():
    def costs(wrapped):
        net = fnn.serial(a=fnn.serial(b=wrapped(fnn.serial(fnn.dense(4), jnp.tanh))))
        return flops_of(profile(*grad_of(net, struct(2, 3))))

    plain, again = costs(lambda net: net), costs(fnn.remat)
    assert set(plain) == set(again)
    assert again["a/b/dense1", True] == plain["a/b/dense1", True] + 2 * 2 * 3 * 4 + 2 * 4
    assert again["a/b/dense1", False] == plain["a/b/dense1", False]


def test_what_is_jitted_in_a_layer_is_of_this_layer_in_both_passes():
    net = fnn.serial(pool=fnn.serial(inner=fnn.max_pool((2, 2))), wave=jax.jit(jnp.sin))
    found = profile(jax.grad(lambda x: net({}, x).sum()), struct(2, 4, 4, 3))
    paths = {(row.path, row.backward) for row in found.rows}
    assert ("pool/inner", True) in paths
    assert {path for path, _ in paths} <= {"pool/inner", "wave", "(loss)", "(other)"}


def test_what_a_loop_hoists_stays_with_its_layer():
    cell = fnn.cells.serial(shift=lambda x: x, cell=fnn.weight_norm(fnn.cells.gru(4)))
    found = profile(*grad_of(fnn.serial(r=fnn.rnn(cell)), struct(2, 5, 3)))
    assert {row.path.split("/")[0] for row in found.rows} <= {"r", "(loss)", "(other)"}


# --- XLA's own counts


def test_counts_are_those_of_xla_where_it_sees_no_loop():
    net = fnn.serial(fnn.dense(64), jax.nn.relu, fnn.dense(32), jax.nn.relu, fnn.dense(16))
    args = grad_of(net, struct(128, 48))
    cost = jax.jit(args[0]).lower(*args[1:]).compile().cost_analysis()
    found = profile(*args).under("")
    np.testing.assert_allclose(found.flops, cost["flops"], rtol=0.02)
    np.testing.assert_allclose(found.nbytes, cost["bytes accessed"], rtol=0.1)


PROGRAM = """HloModule jit_f, is_scheduled=true

%sliced (param_0.1: s32[], param_1.1: f32[10,8]) -> f32[8] {
  %param_1.1 = f32[10,8]{1,0} parameter(1)
  %param_0.1 = s32[] parameter(0)
  %zero.1 = s32[] constant(0)
  %slice.1 = f32[1,8]{1,0} dynamic-slice(%param_1.1, %param_0.1, %zero.1), dynamic_slice_sizes={1,8}
  ROOT %bitcast.1 = f32[8]{0} bitcast(%slice.1)
}

%updated (param_0.2: f32[10,8], param_1.2: f32[8], param_2.2: s32[]) -> f32[10,8] {
  %param_0.2 = f32[10,8]{1,0} parameter(0)
  %param_1.2 = f32[8]{0} parameter(1)
  %param_2.2 = s32[] parameter(2)
  %bitcast.2 = f32[1,8]{1,0} bitcast(%param_1.2)
  %zero.2 = s32[] constant(0)
  ROOT %update.2 = f32[10,8]{1,0} dynamic-update-slice(%param_0.2, %bitcast.2, %param_2.2, %zero.2)
}

%body (loop.3: (s32[], f32[10,8], /*index=2*/f32[10,8])) -> (s32[], f32[10,8], f32[10,8]) {
  %loop.3 = (s32[], f32[10,8]{1,0}, /*index=2*/f32[10,8]{1,0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%loop.3), index=0
  %xs.3 = f32[10,8]{1,0} get-tuple-element(%loop.3), index=1
  %ys.3 = f32[10,8]{1,0} get-tuple-element(%loop.3), index=2
  %x.3 = f32[8]{0} fusion(%i.3, %xs.3), kind=kLoop, calls=%sliced
  %y.3 = f32[8]{0} sine(%x.3), metadata={op_name="jit(f)/jvp(a)/while/body/b/sin" stack_frame_id=3}
  %out.3 = f32[10,8]{1,0} fusion(%ys.3, %y.3, %i.3), kind=kLoop, calls=%updated
  ROOT %tuple.3 = (s32[], f32[10,8]{1,0}, f32[10,8]{1,0}) tuple(%i.3, %xs.3, %out.3)
}

ENTRY %main (x.4: f32[10,8], w.4: bf16[8,4]) -> (f32[10,8], pred[]) {
  %x.4 = f32[10,8]{1,0} parameter(0), metadata={op_name="x"}
  %i.4 = s32[] constant(0)
  %tuple.4 = (s32[], f32[10,8]{1,0}, /*index=2*/f32[10,8]{1,0}) tuple(%i.4, %x.4, %x.4)
  %while.4 = (s32[], f32[10,8]{1,0}, /*index=2*/f32[10,8]{1,0}) while(%tuple.4), condition=%region, body=%body, backend_config={"known_trip_count":{"n":"10"},"x":{}}
  %w.4 = bf16[8,4]{1,0} parameter(1)
  %big.4 = bf16[8,4]{1,0:T(8,128)(2,1)} copy(%w.4)
  ROOT %flag.4 = pred[] custom-call(%big.4), custom_call_target="any"
}
"""  # noqa: E501


def test_bytes_of_a_program_by_hand():
    program = parse(PROGRAM)
    moved = {each.instruction.name: (each.times, each.nbytes) for each in program.moved()}
    assert moved == {
        "x.3": (10, 4 + 32 + 32),  # of xs, a slice
        "y.3": (10, 32 + 32),
        "out.3": (10, 32 + 4 + 32),  # of ys, the same slice
        "big.4": (1, 64 + 64),
        "flag.4": (1, 64 + 1),
    }
    assert program.names()["y.3"] == "jit(f)/jvp(a)/while/body/b/sin"
    assert program.inputs()["out.3"] == {"y.3"} and program.inputs()["y.3"] == {"x.3"}
    assert program.inputs()["tuple.3"] == {"out.3"} and program.inputs()["flag.4"] == {"big.4"}
    assert parse("").moved() == []


# --- names


def test_places():
    net = Place(("net",))
    assert net.inside("").names == ("net",)
    assert net.inside("vmap()/a/vmap(b)") == (("net", "a", "b"), False, False)
    assert net.inside("jvp(jit(<lambda>))/a") == (("net", "a"), True, False)
    assert net.inside("a/bij,bjk->bik").names == ("net", "a")
    back = net.inside("transpose(jvp(a))/b")
    assert back == (("net", "a", "b"), True, True)
    assert back.inside("rematted_computation/c") == (("net", "a", "b", "c"), True, True)
    known = {("a",), ("a", "body"), ("a", "body", "while")}
    text = "jit(f)/jit(g)/transpose(jvp(a))/while/body/closed_call/body/while/while"
    assert in_program(text, known) == (("a", "body", "while"), True, True)
    assert in_program("", known) == ((), False, False)


def test_strays_go_to_the_first_path_that_ends_so():
    places = [
        Place(("cell",)), Place(("rnn", "cell", "dense"), True), Place(("other", "cell"), True),
        Place(("other",)), Place(("optimizer",)),
    ]  # fmt: skip
    found = {names: path for names, path in strays(places).items() if names != path}
    assert found == {("cell",): ("rnn", "cell")}


def test_names_written_twice_count_once_unless_a_path_of_the_forward_pass_has_them_twice():
    forward = [Place(("a", "b", "c"), True), Place(("r", "layer", "layer"), True)]
    backward = [
        Place(tuple(path.split("/")), True, True)
        for path in ("a/b/a/b/c", "a/b/a/b/c/c", "r/layer/layer", "a/b", "only/only")
    ]
    places = [*forward, *backward]
    assert {k: v for k, v in strays(places).items() if k != v} == {
        tuple("ababc"): tuple("abc"),
        tuple("ababcc"): tuple("abc"),
        ("only", "only"): ("only",),
    }
    r = ("r", "layer", "layer")
    assert strays([*forward, Place(r + r, True, True)]) == {r + r: r}


# --- times


def event(name, ts, dur, pid=1, tid=1, **args):
    return {"name": name, "ts": ts, "dur": dur, "pid": pid, "tid": tid, "args": args}


def test_an_operation_has_the_time_that_those_inside_it_leave():
    events = [
        event("while.1", 10.0, 100.0, hlo_op="while.1"),
        event("dot.1", 20.0, 30.0, hlo_op="dot.1"),
        event("dot.1", 60.0, 20.0, hlo_op="dot.1"),
        event("call.1", 61.0, 10.0, hlo_op="add.1"),
        event("dot.1", 0.0, 40.0, tid=2, hlo_op="dot.1"),  # beside it
        event("python", 0.0, 500.0),
        {"name": "dot.1"},
    ]
    found = own_seconds(events, dict.fromkeys(["while.1", "dot.1", "add.1", "unused"], ()))
    wanted = {"while.1": 50e-6, "dot.1": (30 + 10 + 40) * 1e-6, "add.1": 10e-6}
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([found[k] for k in wanted], list(wanted.values()))


def test_time_in_which_nothing_is_seen_goes_to_what_the_next_operation_waits_for():
    events = [
        event("conv.1", 10.0, 1.0, hlo_op="conv.1", run_id="1"),  # goes on elsewhere
        event("mask.1", 11.0, 3.0, hlo_op="mask.1", run_id="1"),
        event("dot.1", 30.0, 5.0, tid=2, hlo_op="dot.1", run_id="1"),
        event("dot.1", 34.0, 2.0, tid=3, hlo_op="dot.1", run_id="1"),
        event("add.1", 40.0, 1.0, tid=3, hlo_op="add.1", run_id="1"),
        event("add.1", 90.0, 1.0, hlo_op="add.1", run_id="2"),
    ]
    inputs = {"conv.1": (), "mask.1": (), "dot.1": {"conv.1"}, "add.1": {"while.9"}}
    found = own_seconds(events, inputs)
    wanted = {"conv.1": 17e-6, "mask.1": 3e-6, "dot.1": 11e-6, "add.1": 2e-6}
    assert found == pytest.approx(wanted)


def test_times_of_a_device_are_its_own_and_counted_once():
    def called(kind, name, **at):
        return {"ph": "M", "name": kind, "args": {"name": name}, **at}

    events = [
        called("process_name", "/host:CPU", pid=1),
        called("process_name", "/device:GPU:0", pid=2),
        called("thread_name", "Stream #1", pid=2, tid=1),
        called("thread_name", "XLA Ops", pid=2, tid=2),
        event("launch", 0.0, 7.0, pid=1, hlo_op="dot.1"),
        event("kernel", 0.0, 5.0, pid=2, tid=1, hlo_op="dot.1"),
        event("dot.1", 0.0, 5.0, pid=2, tid=2),
    ]
    assert own_seconds(events, {"dot.1": ()}) == pytest.approx({"dot.1": 5e-6})
    later = event("dot.1", 50.0, 5.0, pid=2, tid=2)  # a device that waits does nothing
    assert own_seconds([*events, later], {"dot.1": ()}) == pytest.approx({"dot.1": 10e-6})
    assert own_seconds(events[:-1], {"dot.1": ()}) == pytest.approx({"dot.1": 5e-6})
    assert own_seconds(events[-3:-2], {"dot.1": ()}) == pytest.approx({"dot.1": 7e-6})


def test_wrong_inputs_are_refused():
    refused(lambda: profile("text", 1.0), errors.FnnError)
    refused(lambda: profile(jnp.sin, jnp.ones(2), repeats=0), errors.OptionError)
