"""A table with missing values, from cleaning to a calibrated classifier, beside scikit-learn's.

    python examples/binary_table.py

569 tumours, 30 measurements each, of which a tenth is deleted here at random; is a tumour
malignant? The mean over the test parts of ten splits:

                    accuracy   recall  precision   F1    ROC AUC  log loss
    network           0.961    0.926     0.970    0.946   0.991    0.119
    logistic          0.949    0.923     0.943    0.932   0.988    0.130
    boosting          0.938    0.914     0.921    0.916   0.987    0.184

On so small a table a network wins next to nothing over logistic regression: with three
other seeds, at most 0.2 points of accuracy. Half a minute on two cores.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import sklearn.calibration
import sklearn.datasets
import sklearn.ensemble
import sklearn.linear_model
import sklearn.metrics

import fnn

MISSING = 0.1  # the share of values that is deleted
SPLITS = 10
EPOCHS, BATCH_SIZE, PATIENCE = 100, 32, 15
LEARNING_RATE, DROPOUT = 1e-3, 0.2

net = fnn.serial(
    fnn.dense(32), jax.nn.relu, fnn.dropout(DROPOUT),
    fnn.dense(16), jax.nn.relu, fnn.dropout(DROPOUT),
    fnn.dense(1), fnn.reshape(()),  # [B] logits
)  # fmt: skip
tx = fnn.optim.adam(LEARNING_RATE)
names = ("x", "malignant")
step = fnn.train.step(fnn.train.supervised(net, fnn.losses.sigmoid_cross_entropy, names=names), tx)

METRICS = {
    "accuracy": fnn.metrics.binary_accuracy(),
    "recall": fnn.metrics.recall(),
    "precision": fnn.metrics.precision(),
    "F1": fnn.metrics.f1(),
    "ROC AUC": fnn.metrics.roc_auc(),
    "log loss": fnn.losses.sigmoid_cross_entropy,
}


def load(key):
    """The table as pandas has it, with values missing."""
    frame = sklearn.datasets.load_breast_cancer(as_frame=True).frame
    frame["malignant"] = frame.pop("target") == 0
    columns = frame.columns.drop("malignant")
    missing = jax.random.bernoulli(key, MISSING, (len(frame), len(columns)))
    frame[columns] = frame[columns].mask(np.asarray(missing))
    return frame


def network(parts, key):
    """The network's logits on the test part; early stopping looks at the validation part."""
    impute = functools.partial(fnn.data.impute, strategy="median", indicator=True)
    parts, _ = fnn.data.prepare(parts, {"x": [impute, fnn.data.standardize]})
    measured = {"loss": fnn.losses.sigmoid_cross_entropy}
    train_state, history = fnn.train.fit(
        step,
        fnn.train.init(net, tx, key, parts["train"]["x"]),
        parts["train"],
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        evaluate=fnn.train.evaluator(net, parts["valid"], measured, names=names),
        callbacks=[fnn.train.patience("eval/loss", PATIENCE)],  # returns the best params
        progress=False,
    )
    return np.asarray(net(train_state.params, parts["test"]["x"])), history


def scikit(make, parts):
    """The logits of one of scikit-learn's classifiers, with the same preparation."""
    fill = fnn.data.impute(parts["train"]["x"], "median", indicator=True)
    norm = fnn.data.standardize(fill(parts["train"]["x"]))
    prepared = fnn.data.chain(fill, norm)
    model = make().fit(prepared(parts["train"]["x"]), parts["train"]["malignant"])
    return model.decision_function(prepared(parts["test"]["x"]))


OTHERS = {
    "logistic regression": sklearn.linear_model.LogisticRegression,
    "gradient boosting": sklearn.ensemble.GradientBoostingClassifier,
}


def measure(metric, logits, labels):
    value = metric.value if hasattr(metric, "value") else metric
    return float(jnp.mean(value(np.float32(logits), labels)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/binary_table"))
    args = parser.parse_args()

    of_missing, of_splits = jax.random.split(jax.random.key(args.seed))
    frame = load(of_missing)
    print(fnn.data.report(frame, label="malignant"))
    columns = list(frame.columns.drop("malignant"))
    data = fnn.data.from_frame(frame, {"x": columns, "malignant": "malignant"})

    logits, labels, histories = {name: [] for name in ("network", *OTHERS)}, [], []
    for key in jax.random.split(of_splits, args.splits):
        of_split, of_network = jax.random.split(key)
        sizes = {"train": 0.6, "valid": 0.2, "test": 0.2}
        parts = fnn.data.split(data, sizes, of_split, by="malignant")
        found, history = network(parts, of_network)
        logits["network"].append(found)
        histories.append(history)
        for name, make in OTHERS.items():
            logits[name].append(scikit(make, parts))
        labels.append(parts["test"]["malignant"])

    print(f"\n{'test, mean of splits':22}" + "".join(f"{name:>10}" for name in METRICS))
    for name, of_splits in logits.items():
        values = [
            np.mean([measure(metric, z, y) for z, y in zip(of_splits, labels, strict=True)])
            for metric in METRICS.values()
        ]
        print(f"{name:22}" + "".join(f"{value:10.3f}" for value in values))

    args.out.mkdir(parents=True, exist_ok=True)
    pooled = {name: np.concatenate(of_splits) for name, of_splits in logits.items()}
    draw(histories[0], pooled, np.concatenate(labels), args.out / "binary_table.png")
    print(f"picture: {args.out / 'binary_table.png'}")


def draw(history, logits, labels, path):
    """Early stopping of the first split; ROC and calibration of the test parts of all splits."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
    loss = history["eval"]["loss"]
    trained = history["train"]["loss"].reshape(len(loss), -1).mean(axis=1)
    epochs = np.arange(1, len(loss) + 1)
    axes[0].plot(epochs, trained, label="training")
    axes[0].plot(epochs, loss, label="validation")
    axes[0].axvline(1 + np.argmin(loss), color="gray", linestyle="--", label="kept")
    axes[0].set(title="early stopping", xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))

    for name, z in logits.items():
        false, true, _ = sklearn.metrics.roc_curve(labels, z)
        axes[1].plot(false, true, label=name)
        share, mean = sklearn.calibration.calibration_curve(labels, jax.nn.sigmoid(z), n_bins=5)
        axes[2].plot(mean, share, "o-", label=name)
    axes[1].set(title="ROC curve", xlabel="false alarms among benign", xlim=(-0.01, 0.3),
                ylabel="found among malignant", ylim=(0.7, 1.01))  # fmt: skip
    axes[2].plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
    axes[2].set(title="calibration", xlabel="predicted probability", ylabel="share malignant")
    for ax in axes:
        ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
