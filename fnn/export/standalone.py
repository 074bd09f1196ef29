"""The artifact in this folder, with jax, numpy and flatbuffers (of which jax reads programs).

    python -c "import load; print(load.load().apply(x))"

`load()` has params, state, manifest and each program by its name, such as apply(*xs).
"""

import json
import pathlib
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np


def load(folder=pathlib.Path(__file__).parent):
    folder = pathlib.Path(folder)
    trees: dict = {"params": {}, "state": {}}
    manifest = json.loads((folder / "manifest.json").read_text().split("\n", 1)[1])
    if manifest["arrays"]:
        data = np.fromfile(folder / "params.safetensors", np.uint8)
        data = data[8 + int.from_bytes(data[:8].tobytes(), "little") :]  # after the header
    for entry in manifest["arrays"]:
        *above, name = entry["path"]
        node, (low, high) = trees, entry["bytes"]
        for key in above:
            node = node.setdefault(key, {})
        node[name] = jnp.asarray(data[low:high].view(entry["dtype"]).reshape(entry["shape"]))
    out = types.SimpleNamespace(manifest=manifest, **trees)
    given = () if manifest["baked"] else (out.params, out.state)
    for name, said in manifest["programs"].items():
        call = jax.jit(jax.export.deserialize((folder / said["file"]).read_bytes()).call)
        setattr(out, name, lambda *xs, call=call: call(*given, *xs))
    return out
