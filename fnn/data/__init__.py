"""Data sets and tables as NumPy arrays, prepared for training, augmented, and cut into batches.

fnn.data.load or from_frame -> split -> prepare -> batches or eval_batches -> step
what outgrows memory -> stream, bucketed -> step

A table is read and cleaned by pandas. What is fitted on the training split (`standardize`,
`impute`, `encode` ...) is a function and a plain tree, which is saved with the params:

>>> import fnn, jax, numpy as np
>>> import pandas as pd
>>> n = 60
>>> age, sex = [20 + i % 7 for i in range(n)], ["male", "female", None] * (n // 3)
>>> frame = pd.DataFrame({"age": age, "sex": sex, "old": [a > 23 for a in age]})
>>> data = fnn.data.from_frame(frame, {"x": ["age"], "sex": "sex", "y": "old"})
>>> parts = fnn.data.split(data, {"train": 0.8, "test": 0.2}, jax.random.key(0), by="y")
>>> fits = {"x": [fnn.data.impute, fnn.data.standardize], "sex": fnn.data.encode}
>>> parts, fitted = fnn.data.prepare(parts, fits)
>>> parts["train"]["x"].shape, parts["test"]["sex"].dtype, fitted["sex"].size
((48, 1), dtype('int32'), 2)

Then `fnn.train.fit(step, ts, parts["train"], ...)`, and
`fnn.checkpoint.save(path, {"params": ts.params, "fitted": fitted})`. Where there is no data to fit
on, the types rebuild it: `Standard(**saved)`, with the dict that `fnn.checkpoint.restore` returns.

By groups, such as patients, or by time, scikit-learn finds the rows:

>>> from sklearn.model_selection import GroupShuffleSplit, TimeSeriesSplit
>>> folds = GroupShuffleSplit(1, test_size=0.2, random_state=0).split(frame, groups=frame["age"])
>>> rows = dict(zip(("train", "test"), next(folds)))
>>> parts = {name: jax.tree.map(lambda a: a[at], data) for name, at in rows.items()}
>>> np.intersect1d(parts["train"]["x"], parts["test"]["x"]).size
0
>>> past, future = list(TimeSeriesSplit(5).split(frame))[-1]
>>> bool(past.max() < future.min())
True

Text becomes tokens by a tokenizer, such as one of the package `tokenizers`, in one line:
`ids = np.array([e.ids for e in Tokenizer.from_file("bpe.json").encode_batch(texts)])`, with its
padding enabled.
"""

from fnn.data import augment
from fnn.data.batching import batches, eval_batches, permutation
from fnn.data.buckets import bucketed
from fnn.data.categories import Encoding, OneHot, encode, one_hot
from fnn.data.frames import from_frame
from fnn.data.imputation import Imputation, impute
from fnn.data.loading import load
from fnn.data.packs import packed
from fnn.data.preparation import Chain, chain, prepare
from fnn.data.reports import report
from fnn.data.scales import Limits, MinMax, Standard, clip_outliers, minmax, standardize
from fnn.data.sources import files
from fnn.data.splits import split
from fnn.data.stream import Stream, stream

__all__ = [
    "Chain", "Encoding", "Imputation", "Limits", "MinMax", "OneHot", "Standard", "Stream",
    "augment", "batches", "bucketed", "chain", "clip_outliers", "encode", "eval_batches", "files",
    "from_frame", "impute", "load", "minmax", "one_hot", "packed", "permutation", "prepare",
    "report", "split", "standardize", "stream",
]  # fmt: skip
