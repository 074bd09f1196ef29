"""Logs for TensorBoard: scalars, histograms of trees, images and figures."""

from __future__ import annotations

import io
import os
import pathlib
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from fnn import tree
from fnn.core import checks, errors
from fnn.core.types import Tree
from fnn.log.event_files import EventFiles
from fnn.log.rows import Rows
from fnn.log.values import flat, text
from fnn.train.events import Event

BINS = 30  # as TensorBoard's own


def params_of(event: Event) -> Tree:
    return event.train_state.params


@errors.named
def tensorboard(
    directory: str | os.PathLike,
    *,
    every: int = 1,
    histograms_every: int | None = None,
    histograms: Mapping[str, Callable[[Event], Tree]] | None = None,
    images: Mapping[str, Callable[[Event], Any]] | None = None,
    figures: Mapping[str, Callable[[Event], Any]] | None = None,
    interval: float = 2.0,
    overwrite: bool = False,
) -> Any:
    """A callback of `fit` that writes event files for TensorBoard (extra `log`).

    - `directory`: of the run alone; `tensorboard --logdir` takes it, or the folder of several runs.
    - `every`, `interval`, `overwrite`: as in `fnn.log.jsonl`, of the scalars.
    - `histograms_every`: steps between the histograms; None draws none.
    - `histograms`: trees of arrays by name, as functions of the event; None is
      `{"params": lambda event: event.train_state.params}`. For gradients, add a function that
      computes them, such as `lambda event: grads(event.train_state.params, probe)`. A tree has a
      histogram per leaf, of its finite values; if others are among them, their number is the
      scalar `path/not_finite`.
    - `images`: pictures by name, as functions of the event: [H, W], [H, W, C] or [N, H, W, C] of
      1, 3 or 4 channels, uint8 or floats in [0, 1].
    - `figures`: matplotlib figures by name, as functions of the event, which are then closed.

    Images and figures are drawn after each evaluation, and at the end; a function that returns None
    draws nothing that time. Scalars are float32 where that holds the value, else float64. A metric
    that is an array is a scalar per element, `name/0`, `name/1` and so on.

    A checkpoint holds where the files end. A resumed run cuts them there, and goes on in a new
    file, so that no value stands twice; a TensorBoard that is open meanwhile drops the later steps.
    It raises InputError if the file is missing, shorter or another one. Of many processes the first
    writes.

    >>> log = tensorboard("runs/first", histograms_every=100)  # fit(..., callbacks=[log])
    >>> log.state()["step"]
    0
    """
    if histograms_every is not None:
        checks.count("histograms_every", histograms_every)
    given = ({"params": params_of} if histograms is None else histograms, images or {},
             figures or {})  # fmt: skip
    for name, functions in zip(("histograms", "images", "figures"), given, strict=True):
        checks.mapping(name, functions)
        for key, fn in functions.items():
            checks.function(f"{name}[{key!r}]", fn, "the event")
    files = EventFiles(pathlib.Path(directory))
    return _TensorBoard(files, Rows(every, interval), histograms_every, *given, overwrite)


class _TensorBoard:
    """The callback: it takes rows and pictures from the run, and gives them to the files."""

    def __init__(self, files, rows, histograms_every, histograms, images, figures, overwrite):
        self.files, self.rows, self.overwrite = files, rows, overwrite
        self.histograms_every, self.histograms = histograms_every, histograms
        self.images, self.figures = images, figures
        self.begun = False
        self.counted = self.drawn = 0  # the steps of the last histograms and pictures

    def __call__(self, event: Event) -> None:
        every = self.histograms_every
        due = every is not None and event.step // every > self.counted // every
        if not self.rows.writes or self.begun and not due and self.rows.idle(event):
            return
        with errors.within("tensorboard"):
            if not self.begun:
                self.files.begin(self.overwrite)
                self.begun = True
            if self.rows.see(event):
                self._take()
            if self.rows.evaluation(event):
                self._write(event.step, time.time(), _scalars(event.evaluation))
            if due:
                self.counted = event.step
                self._write(event.step, time.time(), self._histograms(event))
            if (event.evaluation or event.ended) and event.step > self.drawn:
                self.drawn = event.step
                self._write(event.step, time.time(), self._pictures(event))
        if event.ended:
            self.files.sync()

    def _take(self) -> None:
        self.files.append([
            self._event(row.step, when, _scalars(row.metrics)) for row, when in self.rows.take()
        ])  # fmt: skip

    def _write(self, step: int, when: float, values: Iterator[dict[str, Any]]) -> None:
        event = self._event(step, when, values)
        if event.summary.value:
            self.files.append([event])

    def _event(self, step: int, when: float, values: Iterator[dict[str, Any]]) -> Any:
        event = self.files.event(step=step, wall_time=when)
        for value in values:
            event.summary.value.add(**value)
        return event

    def _histograms(self, event: Event) -> Iterator[dict[str, Any]]:
        for name, fn in self.histograms.items():
            for path, values in tree.to_paths(jax.device_get(fn(event))).items():
                yield from _histogram(f"{name}/{path}" if path else name, values)

    def _pictures(self, event: Event) -> Iterator[dict[str, Any]]:
        for name, fn in self.images.items():
            if (picture := fn(event)) is not None:
                yield from _images(name, np.asarray(picture))
        for name, fn in self.figures.items():
            if (figure := fn(event)) is not None:
                yield _image(name, _png_of(figure))

    def state(self) -> dict[str, int]:
        if self.rows.writes and self.begun:
            self._take()
            self.files.sync()
        steps = {"step": self.rows.step, "counted": self.counted, "drawn": self.drawn}
        return steps | self.files.position()

    def restore(self, state: dict[str, Any]) -> None:
        if self.rows.writes:
            numbers = {name: int(value) for name, value in state.items()}
            with errors.within("tensorboard"):
                self.files.cut(numbers, numbers["step"], self.overwrite)
            self.rows.restart(numbers["step"])
            self.begun, self.counted, self.drawn = True, numbers["counted"], numbers["drawn"]


# --- what a Summary.Value is made from


def _scalars(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in flat(metrics):
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            text(name, array)  # raises for what is not a real number
        for at, number in np.ndenumerate(array):
            yield _scalar("/".join([name, *map(str, at)]), float(number))


def _scalar(tag: str, value: float) -> dict[str, Any]:
    with np.errstate(over="ignore"):
        single = float(np.float32(value))
    if single == value or value != value:
        return {"tag": tag, "simple_value": value}
    tensor = {"dtype": "DT_DOUBLE", "tensor_shape": {}, "double_val": [value]}
    metadata = {"plugin_data": {"plugin_name": "scalars"}}
    return {"tag": tag, "tensor": tensor, "metadata": metadata}


def _histogram(tag: str, values: Any) -> Iterator[dict[str, Any]]:
    values = np.asarray(values).astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    if wrong := values.size - finite.size:
        yield _scalar(f"{tag}/not_finite", float(wrong))
    if not finite.size:
        return
    counts, edges = np.histogram(finite, BINS)
    yield {
        "tag": tag,
        "histo": {
            "min": finite.min(),
            "max": finite.max(),
            "num": finite.size,
            "sum": finite.sum(),
            "sum_squares": finite @ finite,
            # TensorBoard knows the right edges alone; an empty first bucket tells it the left one.
            "bucket_limit": edges.tolist(),
            "bucket": [0, *counts.tolist()],
        },
    }


def _images(name: str, pictures: np.ndarray) -> Iterator[dict[str, Any]]:
    if pictures.ndim == 4:
        for i, picture in enumerate(pictures):
            yield from _images(f"{name}/{i}", picture)
        return
    shape = pictures.shape
    if not pictures.size or not (len(shape) == 2 or len(shape) == 3 and shape[2] in (1, 3, 4)):
        wanted = f"the image {name} [H, W], or [H, W, C] with 1, 3 or 4 channels"
        raise errors.ShapeError(wanted, f"{shape}", "move the channels last")
    if pictures.dtype.kind in "biu" and pictures.dtype != np.uint8:
        mend = "pass uint8 from 0 to 255, or floats from 0 to 1"
        raise errors.DtypeError(f"the image {name} as uint8 or floats", f"{pictures.dtype}", mend)
    if pictures.dtype != np.uint8:
        shade = np.nan_to_num(pictures.astype(np.float64), nan=0.0)
        pictures = np.rint(np.clip(shade, 0, 1) * 255).astype(np.uint8)
    yield _image(name, _png(pictures))


def _png(pixels: np.ndarray) -> bytes:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            "images in fnn.log.tensorboard need Pillow: pip install 'fnn[log]'"
        ) from None
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(file, "PNG")
    return file.getvalue()


def _png_of(figure: Any) -> bytes:
    from matplotlib import pyplot  # which the caller has, to make a figure

    file = io.BytesIO()
    figure.savefig(file, format="png")
    pyplot.close(figure)
    return file.getvalue()


def _image(tag: str, png: bytes) -> dict[str, Any]:
    width, height = struct.unpack(">II", png[16:24])  # where every PNG has them
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[png[25]]
    picture = {"height": height, "width": width, "colorspace": channels}
    return {"tag": tag, "image": picture | {"encoded_image_string": png}}
