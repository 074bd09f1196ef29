"""GPT-2 and Llama in float64, position by position, from their papers and files."""

import json
import math
import struct

import numpy as np

CODES = {"float32": "F32", "float16": "F16"}


def write_file(path, arrays, extra=None):
    """One safetensors file by the format's description; `extra` goes into the header."""
    header, data = dict(extra or {}), b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": CODES[array.dtype.name], "shape": list(array.shape)}
        header[name]["data_offsets"] = offsets
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


GPT2 = {"model_type": "gpt2", "vocab_size": 11, "n_positions": 16, "n_embd": 8, "n_head": 2,
        "n_layer": 2, "n_inner": None, "layer_norm_epsilon": 1e-5, "eos_token_id": None,
        "activation_function": "gelu_new"}  # fmt: skip
LLAMA = {"model_type": "llama", "vocab_size": 11, "max_position_embeddings": 16, "hidden_size": 8,
         "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "head_dim": 4,
         "intermediate_size": 12, "rms_norm_eps": 1e-5, "hidden_act": "silu",
         "tie_word_embeddings": False, "rope_parameters": {"rope_theta": 500.0},
         "eos_token_id": None}  # fmt: skip


def gpt2_weights(config, rng):
    """{name: array} as GPT-2's files have them: weights of a Conv1D are (in, out)."""
    c, v, n = config["n_embd"], config["vocab_size"], config["n_positions"]
    shapes = {"wte.weight": (v, c), "wpe.weight": (n, c), "ln_f.weight": (c,), "ln_f.bias": (c,)}
    inner = {"attn.c_attn": (c, 3 * c), "attn.c_proj": (c, c), "mlp.c_fc": (c, 4 * c),
             "mlp.c_proj": (4 * c, c)}  # fmt: skip
    for i in range(config["n_layer"]):
        for name, shape in inner.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[1:]}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{norm}.weight": (c,), f"h.{i}.{norm}.bias": (c,)}
    return drawn({f"transformer.{name}": shape for name, shape in shapes.items()}, rng)


def llama_weights(config, rng):
    """{name: array} as Llama's files have them: weights are (out, in)."""
    c, v, d = config["hidden_size"], config["vocab_size"], config["head_dim"]
    n, k, hidden = (
        config[name] for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    )
    shapes = {"model.embed_tokens.weight": (v, c), "model.norm.weight": (c,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, c)
    inner = {"self_attn.q_proj": (n * d, c), "self_attn.k_proj": (k * d, c),
             "self_attn.v_proj": (k * d, c), "self_attn.o_proj": (c, n * d),
             "mlp.gate_proj": (hidden, c), "mlp.up_proj": (hidden, c), "mlp.down_proj": (c, hidden),
             "input_layernorm": (c,), "post_attention_layernorm": (c,)}  # fmt: skip
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in inner.items()}
    return drawn(shapes, rng)


def drawn(shapes, rng):
    def draw(name, shape):
        scale = "norm" in name or ".ln_" in name
        return (0.5 * rng.normal(size=shape) + (scale and name.endswith("weight"))).astype("f4")

    return {name: draw(name, shape) for name, shape in shapes.items()}


# --- the equations


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def attended(q, k, v):
    """Causal attention of [T, N, D] over [T, K, D], each of K heads for N / K in a row."""
    y = np.zeros_like(q)
    for t, n in np.ndindex(q.shape[:2]):
        own = n * k.shape[1] // q.shape[1]
        weights = softmax(k[: t + 1, own] @ q[t, n] / math.sqrt(q.shape[2]))
        y[t, n] = weights @ v[: t + 1, own]
    return y.reshape(len(q), -1)


def gpt2_logits(weights, config, tokens):
    """[T] tokens -> [T, V]."""
    w = {name.removeprefix("transformer."): np.float64(a) for name, a in weights.items()}

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_epsilon"])
        return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv1d(name, x):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    h = w["wte.weight"][tokens] + w["wpe.weight"][: len(tokens)]
    for i in range(config["n_layer"]):
        q, k, v = np.split(conv1d(f"h.{i}.attn.c_attn", norm(f"h.{i}.ln_1", h)), 3, axis=-1)
        heads = [a.reshape(len(tokens), config["n_head"], -1) for a in (q, k, v)]
        h = h + conv1d(f"h.{i}.attn.c_proj", attended(*heads))
        up = gelu(conv1d(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", h)))
        h = h + conv1d(f"h.{i}.mlp.c_proj", up)
    return norm("ln_f", h) @ w["wte.weight"].T


def llama_logits(weights, config, tokens):
    """[T] tokens -> [T, V]."""
    w = {name.removeprefix("model."): np.float64(a) for name, a in weights.items()}
    d = config["head_dim"]

    def norm(name, x):
        size = np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return x / size * w[f"{name}.weight"]

    def linear(name, x):
        return x @ w[f"{name}.weight"].T

    def rotated(x):
        y = np.empty_like(x)
        for t in range(len(x)):
            for i in range(d // 2):
                angle = t * config["rope_parameters"]["rope_theta"] ** (-2 * i / d)
                a, b = x[t, :, i], x[t, :, i + d // 2]
                y[t, :, i] = a * math.cos(angle) - b * math.sin(angle)
                y[t, :, i + d // 2] = b * math.cos(angle) + a * math.sin(angle)
        return y

    h = w["embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        x = norm(f"layers.{i}.input_layernorm", h)
        q, k, v = (
            linear(f"layers.{i}.self_attn.{name}_proj", x).reshape(len(x), -1, d) for name in "qkv"
        )
        h = h + linear(f"layers.{i}.self_attn.o_proj", attended(rotated(q), rotated(k), v))
        x = norm(f"layers.{i}.post_attention_layernorm", h)
        gate = linear(f"layers.{i}.mlp.gate_proj", x)
        up = gate / (1 + np.exp(-gate)) * linear(f"layers.{i}.mlp.up_proj", x)
        h = h + linear(f"layers.{i}.mlp.down_proj", up)
    return norm("norm", h) @ w.get("lm_head.weight", w["embed_tokens.weight"]).T
