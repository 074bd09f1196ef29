"""The metrics of a run in Weights & Biases or MLflow, by a callback of ten lines.

    python examples/log_elsewhere.py                     # prints them; needs no account
    python examples/log_elsewhere.py --service wandb     # pip install wandb
    python examples/log_elsewhere.py --service mlflow    # pip install mlflow

Reaches 96% on held-out digits after 10 epochs, a few seconds on two cores. The run is logged in
outputs/log_elsewhere/run.jsonl as well; `python -m fnn.log` shows that file while it grows, and
runs.png is drawn from it.
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

import fnn

EPOCHS, BATCH_SIZE, LEARNING_RATE = 10, 64, 3e-3
EVERY = 20  # steps between looks at the device


def forward(log, finish, every=EVERY):
    """A callback that hands on each row once, to `log(values, step=...)`; it ends by `finish()`."""
    sent = 0

    def callback(event):
        nonlocal sent
        if event.step >= sent + every or event.evaluation or event.ended:
            for row in event.rows(sent):
                log(scalars(row.metrics), step=row.step)
            sent = event.step
        if event.evaluation:
            log(scalars(event.evaluation), step=event.step)
        if event.ended:
            finish()

    return callback


def wandb_callback(**options):
    """Rows to Weights & Biases, which skips steps that it has: a resumed run repeats none."""
    import wandb

    run = wandb.init(**options)
    return forward(run.log, run.finish)


def mlflow_callback(**options):
    """Rows to MLflow, at the server that MLFLOW_TRACKING_URI names."""
    import mlflow

    mlflow.start_run(**options)
    return forward(mlflow.log_metrics, mlflow.end_run)


def print_callback():
    """The evaluations in the terminal: all that a callback is."""

    def callback(event):
        if event.evaluation:
            values = scalars(event.metrics) | scalars(event.evaluation)
            print(f"step {event.step:4}", *(f"{k} {v:.4f}" for k, v in values.items()), sep="  ")

    return callback


def scalars(metrics):
    return {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}


SERVICES = {"print": print_callback, "wandb": wandb_callback, "mlflow": mlflow_callback}

train, test = fnn.data.load("digits", floats=True).values()
net = fnn.serial(fnn.flatten(3), fnn.dense(64), jax.nn.relu, fnn.dense(10))
metrics = {"accuracy": fnn.metrics.accuracy()}
loss_fn = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, metrics)
measured = {"loss": fnn.losses.softmax_cross_entropy} | metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--service", choices=SERVICES, default="print")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/log_elsewhere"))
    args = parser.parse_args()

    path = args.out / "run.jsonl"
    tx = fnn.optim.adam(LEARNING_RATE)
    train_state = fnn.train.init(net, tx, jax.random.key(0), train["image"][:1])
    train_state, history = fnn.train.fit(
        fnn.train.step(loss_fn, tx),
        train_state,
        train,
        epochs=args.epochs,
        batch_size=BATCH_SIZE,
        evaluate=fnn.train.evaluator(net, test, measured),
        callbacks=[SERVICES[args.service](), fnn.log.jsonl(path, overwrite=True)],
        progress=False,
    )

    columns = fnn.log.read(path)
    accuracy = columns["eval/accuracy"][np.isfinite(columns["eval/accuracy"])]
    print(f"{accuracy[-1]:.1%} right on held-out digits, {len(columns['step'])} rows in {path}")
    figure = fnn.analysis.plot.runs(columns, ["loss", "accuracy"])
    figure.savefig(args.out / "runs.png", dpi=150)
    plt.close(figure)
    print(f"picture: {args.out / 'runs.png'}")


if __name__ == "__main__":
    main()
