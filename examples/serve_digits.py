"""A network that reads digits answers over HTTP.

    python examples/serve_digits.py              # trains, exports, serves, asks, and shuts down
    python examples/serve_digits.py --keep       # then serves on, for a browser

The network of mnist_cnn.py is trained for a few epochs and exported with statistics of its inputs.
A process of its own serves it; a thousand test digits are sent to it, by one client and by 16 at
once, and then faint ones, which the server's meters notice. The answers are those of
the network: 97% are right.
"""

import argparse
import http.client
import io
import pathlib
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

import fnn

EPOCHS = 5
CLIENTS = 16

net = fnn.serial(
    fnn.conv(32, (3, 3)),  # [B, 28, 28, 32]
    jax.nn.relu,
    fnn.max_pool((2, 2)),  # [B, 14, 14, 32]
    fnn.conv(64, (3, 3)),
    jax.nn.relu,
    fnn.max_pool((2, 2)),  # [B, 7, 7, 64]
    fnn.flatten(3),  # [B, 3136]
    fnn.dense(128),
    jax.nn.relu,
    fnn.dropout(0.5),
    fnn.dense(10),  # [B, 10]
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--keep", action="store_true", help="serve until Ctrl + C")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/serve_digits"))
    args = parser.parse_args()

    train, test = fnn.data.load("mnist_5k", floats=True).values()
    params, state = trained(train, args.epochs)
    path = export(args.out, params, state, train["image"][:1000])
    process, address = serve(path)
    try:
        ask_all(address, params, test)
        if args.keep:
            print(f"open {address} in a browser")
            process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        process.send_signal(signal.SIGTERM)
        print(f"the server ended with code {process.wait()}")
        process.stdout.close()


def trained(train, epochs):
    tx = fnn.optim.adam(2e-3)
    loss_fn = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy)
    step = fnn.train.step(loss_fn, tx)
    train_state = fnn.train.init(net, tx, jax.random.key(0), train["image"][:1])
    train_state, _ = fnn.train.fit(step, train_state, train, epochs=epochs, batch_size=64)
    return train_state.params, train_state.state


def export(out, params, state, examples):
    """An artifact: a folder with the program, its params, and what the server tells of it."""
    path = out / f"artifact-{time.strftime('%Y%m%d-%H%M%S')}"
    rows = fnn.analysis.summary(net, (1, 28, 28, 1)).rows
    lines = [f"{row.path} {' × '.join(map(str, row.output.shape[1:]))}" for row in rows if row.path]
    fnn.export.save(
        path, net, params, state, ("batch", 28, 28, 1),
        examples=examples, labels=list("0123456789"), network="\n".join(lines),
    )  # fmt: skip
    print(f"exported to {path}")
    return path


def serve(path):
    """The server as a process of its own, and its address."""
    options = ["--port", "0", "--max-batch", str(CLIENTS)]
    command = [sys.executable, "-m", "fnn.serve", str(path), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline().strip()
    print(line)
    return process, line.split()[-1]


def ask_all(address, params, test):
    images, labels = test["image"], test["label"]
    for clients in (1, CLIENTS):
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            parts = list(pool.map(lambda part: ask(address, part), np.array_split(images, clients)))
        seconds = time.perf_counter() - start
        logits = np.concatenate([part[0] for part in parts])
        times = 1e3 * np.concatenate([part[1] for part in parts])
        right = (logits.argmax(-1) == labels).mean()
        print(
            f"{clients:2} clients: {right:.1%} right, {len(images) / seconds:,.0f} digits/s, "
            f"{np.median(times):.1f} ms at the median, {np.quantile(times, 0.99):.1f} at 99%"
        )
    error = np.abs(logits - jax.jit(net)(params, images)).max()
    print(f"the answers differ from the network's by at most {error:.0e}")
    print(f"drift {drift(address):.2f}; and of faint digits: ", end="")
    ask(address, images * 0.6)
    print(f"{drift(address):.2f} (above 0.25 is much)")


def ask(address, images):
    """The logits for images, sent one by one over one connection, and the seconds of each."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    logits, seconds = [], []
    for image in images:
        body = io.BytesIO()
        np.save(body, image)
        start = time.perf_counter()
        kind = {"content-type": "application/x-npy"}
        connection.request("POST", "/predict", body.getvalue(), kind)
        logits.append(np.load(io.BytesIO(connection.getresponse().read())))
        seconds.append(time.perf_counter() - start)
    connection.close()
    return np.stack(logits), seconds


def drift(address):
    """The population stability index of the last inputs, from the meters for Prometheus."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return max(float(line.split()[-1]) for line in lines if line.startswith("fnn_input_psi"))


if __name__ == "__main__":
    main()
