"""One network written in three ways, and what it gains by being a function of its parameters.

    python examples/functions.py

The three give the same numbers. The network learns the solution of u'' = -pi^2 sin(pi x) from the
equation alone, to within 6.9e-5 (3.7e-5 to 1.0e-4 over three seeds), in 3,000 steps that take 4 to
9 seconds on two busy cores, including compilation.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from jax.flatten_util import ravel_pytree

import fnn

WIDTH = 16
STEPS = 3000
POINTS = 64  # where the residual is evaluated; drawn in each step
LEARNING_RATE = 5e-3

# One network in three ways: a chain of layers,

chain = fnn.serial(
    fnn.dense(WIDTH), jnp.tanh,  # [..., 1] -> [..., WIDTH]
    fnn.dense(WIDTH), jnp.tanh,
    fnn.dense(1),  # [..., 1]
)  # fmt: skip


# named sublayers and a formula,


@fnn.compose(dense1=fnn.dense(WIDTH), dense2=fnn.dense(WIDTH), dense3=fnn.dense(1))
def formula(f, x):
    return f.dense3(jnp.tanh(f.dense2(jnp.tanh(f.dense1(x)))))


# and plain functions of a dict of arrays, without layers.


def affine(params, x):
    return x @ params["kernel"] + params["bias"]


def plain(params, x):
    h = jnp.tanh(affine(params["dense1"], x))
    return affine(params["dense3"], jnp.tanh(affine(params["dense2"], h)))


def compare(key):
    """The outputs of all three for the same params."""
    params, _ = chain.init(key, (1,))
    again, _ = formula.init(key, (1,))  # initial values depend on names, and the names are the same
    same = not fnn.tree.compare(params, again)
    x = jnp.linspace(0, 1, 101)[:, None]
    ys = [net(params, x) for net in (chain, formula, plain)]
    apart = max(float(jnp.abs(y - ys[0]).max()) for y in ys)
    print(f"three ways: same first params: {same}; outputs differ by at most {apart:.1e}")


def transform(key):
    """Derivatives and batching are JAX's own, applied to the network like any function."""
    of_params, of_vector, of_many = jax.random.split(key, 3)
    params, _ = chain.init(of_params, (1,))
    x = jnp.linspace(0, 1, 64)[:, None]

    def loss(params, x):
        return jnp.mean((chain(params, x) - jnp.sin(jnp.pi * x)) ** 2)

    flat, unravel = ravel_pytree(params)
    grad = jax.jit(jax.grad(lambda flat: loss(unravel(flat), x)))
    hessian = jax.jit(jax.hessian(lambda flat: loss(unravel(flat), x)))(flat)
    curvatures = jnp.linalg.eigvalsh(hessian)
    v = jax.random.normal(of_vector, flat.shape)
    product = jax.jvp(grad, (flat,), (v,))[1]  # the hessian times v, without forming it
    apart = jnp.linalg.norm(hessian @ v - product) / jnp.linalg.norm(product)
    print(
        f"hessian {hessian.shape}: curvatures from {curvatures[0]:.2f} to {curvatures[-1]:.2f}; "
        f"times a vector it is the jvp of the gradient within {apart:.0e}"
    )

    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, x)  # one per example
    norms = jax.vmap(lambda grads: jnp.linalg.norm(ravel_pytree(grads)[0]))(each)
    mean = ravel_pytree(jax.tree.map(lambda g: g.mean(0), each))[0]
    apart = jnp.linalg.norm(mean - grad(flat)) / jnp.linalg.norm(mean)
    print(
        f"per-example gradients: norms from {norms.min():.2g} to {norms.max():.2g}; their mean is "
        f"the batch's gradient within {apart:.0e}"
    )

    keys = jax.random.split(of_many, 100)
    many, _ = jax.jit(jax.vmap(lambda key: chain.init(key, (1,))))(keys)  # every leaf [100, ...]
    ys = jax.vmap(chain, in_axes=(0, None))(many, x)  # [100, 64, 1]
    print(f"100 networks at once: {ys.shape}, deviation {ys.std(0).mean():.2f} between them")


# A differential equation: u'' = -pi^2 sin(pi x) on [0, 1], u(0) = u(1) = 0. Its solution sin(pi x)
# is never shown: training minimizes the residual, which contains the network's second derivative
# with respect to its input (Raissi, Perdikaris & Karniadakis, 2019).


def u(params, x):  # [] -> []
    return x * (1 - x) * chain(params, x[None])[0]  # zero at both ends, whatever the params


def residual(params, x):
    second = jax.grad(jax.grad(u, argnums=1), argnums=1)
    return second(params, x) + jnp.pi**2 * jnp.sin(jnp.pi * x)


def loss_fn(params, state, points, key):
    return jnp.mean(jax.vmap(residual, in_axes=(None, 0))(params, points) ** 2), (state, {})


def solve(key, steps):
    """The trained params, from one compiled program: a scan of training steps."""

    def cosine(count):  # from LEARNING_RATE down to zero
        return LEARNING_RATE * (1 + jnp.cos(jnp.pi * jnp.minimum(count / steps, 1))) / 2

    tx = fnn.optim.adam(cosine)
    step = fnn.train.step(loss_fn, tx)
    ts = fnn.train.init(chain, tx, key, (1,))
    points = jax.random.uniform(jax.random.fold_in(key, 1), (steps, POINTS))
    ts, metrics = jax.jit(lambda ts, points: jax.lax.scan(step, ts, points))(ts, points)
    return ts.params, metrics["loss"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/functions"))
    args = parser.parse_args()
    key = jax.random.key(args.seed)

    compare(key)
    transform(key)

    start = time.perf_counter()
    params, loss = jax.block_until_ready(solve(key, args.steps))
    seconds = time.perf_counter() - start
    print(f"u'' = -pi^2 sin(pi x): {args.steps:,} steps in {seconds:.0f} s with compiling, "
          f"mean squared residual {loss[0]:.2g} to {loss[-1]:.2g}")  # fmt: skip

    x = jnp.linspace(0, 1, 501)
    learnt, rest = (jax.jit(jax.vmap(f, in_axes=(None, 0)))(params, x) for f in (u, residual))
    print(f"largest error {jnp.abs(learnt - jnp.sin(jnp.pi * x)).max():.1e}")

    args.out.mkdir(parents=True, exist_ok=True)
    draw(x, learnt, rest, args.out / "functions.png")
    print(f"picture: {args.out / 'functions.png'}")


def draw(x, learnt, rest, path):
    """The learnt and the exact solution, their difference, and the residual."""
    exact = jnp.sin(jnp.pi * x)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    left.plot(x, exact, color="tab:gray", alpha=0.4, linewidth=6, label="sin(πx)")
    left.plot(x, learnt, color="tab:blue", label="learnt u(x)")
    left.set(title="Solution of u'' = -π² sin(πx)")
    left.legend(frameon=False, loc="center")
    middle.plot(x, learnt - exact, color="tab:blue")
    middle.set(title="Error, u - sin(πx)")
    middle.ticklabel_format(useMathText=True)
    right.plot(x, rest, color="tab:orange")
    right.set(title="Residual, u'' + π² sin(πx)")
    for axes in (left, middle, right):
        axes.axhline(0, color="black", linewidth=0.5)
        axes.set(xlabel="x")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
