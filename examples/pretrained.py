"""Weights from elsewhere: GPT-2 and Llama, read from a folder as Hugging Face writes it.

    python examples/pretrained.py --folder gpt2 --prompt "The answer is"
    python examples/pretrained.py               # a small folder of its own, no network needed

A folder holds config.json and model.safetensors, or several such files and their index, and
tokenizer.json, which the library tokenizers reads; without one, prompts are numbers of tokens.
Both networks are made of fnn's layers. Without a folder, a GPT-2 and a Llama of random weights are
written as Hugging Face does, read back, and go on with a few numbers; with and without a cache,
logits differ by less than 1e-4.
"""

import argparse
import functools
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import fnn

STEPS, TEMPERATURE, TOP_P = 40, 0.7, 0.9
ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}

# --- the networks


def positions(cached):
    """The position of each token, counted over calls if `cached`: [..., T] -> ints [..., T]."""

    def specs(tokens, segments=None):
        count = fnn.Param(tokens.shape[:-1], fnn.initializers.zeros, jnp.int32, "cache")
        return {}, {"count": count} if cached else {}

    def apply(params, state, tokens, segments=None, *, key, train):
        real = jnp.ones(tokens.shape, bool) if segments is None else segments > 0
        number = jnp.cumsum(real, axis=-1, dtype=jnp.int32)
        start = state["count"] if cached else jnp.zeros(tokens.shape[:-1], jnp.int32)
        at = jnp.maximum(start[..., None] + number - 1, 0)
        return at, {"count": start + number[..., -1]} if cached else state

    return fnn.leaf("positions", specs, apply)


def gpt2(config, cache=None, dtype=jnp.float32):
    """GPT-2 (Radford et al., 2019): [..., T] tokens -> [..., T, V] logits."""
    features = config["n_embd"]
    norm = functools.partial(fnn.layer_norm, eps=config.get("layer_norm_epsilon", 1e-5))
    block = fnn.transformer_block(
        features, config["n_head"], hidden=config.get("n_inner"), causal=True, cache=cache,
        activation=ACTIVATIONS[config.get("activation_function", "gelu_new")], norm=norm,
    )  # fmt: skip

    @fnn.compose(
        embed=fnn.embedding(config["vocab_size"], features, dtype=dtype),
        at=positions(cache is not None),
        place=fnn.embedding(config["n_positions"], features, dtype=dtype),
        blocks=fnn.repeat(block, config["n_layer"]),
        norm=norm(),
    )
    def gpt2(f, tokens, segments=None):
        h = f.embed(tokens) + f.place(f.at(tokens, segments))
        h = f.norm(f.blocks(h, segments=segments))
        return h @ f.embed.params["embedding"].T

    return gpt2


def llama(config, cache=None, dtype=jnp.float32):
    """Llama (Touvron et al., 2023): [..., T] tokens -> [..., T, V] logits."""
    features, size = config["hidden_size"], config["vocab_size"]
    norm = functools.partial(fnn.rms_norm, eps=config["rms_norm_eps"])
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    biased = {config.get(name, False) for name in ("attention_bias", "mlp_bias")}
    if kind != "default" or len(biased) > 1:
        sys.exit(f"not built here: rotary positions {kind!r}, or biases in attention alone")
    block = fnn.transformer_block(
        features, config["num_attention_heads"], kv_heads=config.get("num_key_value_heads"),
        head_dim=config.get("head_dim"), hidden=config["intermediate_size"], causal=True,
        rotary=rotary.get("rope_theta", config.get("rope_theta", 10_000.0)), cache=cache,
        activation=ACTIVATIONS[config.get("hidden_act", "silu")], gated=True, norm=norm,
        use_bias=biased.pop(),
    )  # fmt: skip
    parts = {
        "embed": fnn.embedding(size, features, dtype=dtype),
        "blocks": fnn.repeat(block, config["num_hidden_layers"]),
        "norm": norm(),
    }
    tied = config.get("tie_word_embeddings", False)
    if not tied:
        parts["head"] = fnn.dense(size, use_bias=False)

    @fnn.compose(**parts)
    def llama(f, tokens, segments=None):
        h = f.norm(f.blocks(f.embed(tokens), segments=segments))
        return h @ f.embed.params["embedding"].T if tied else f.head(h)

    return llama


# --- their files

GPT2 = {  # the path of each layer here, and its name there
    "embed": "transformer.wte",
    "place": "transformer.wpe",
    "blocks/*/norm1": "transformer.h.*.ln_1",
    "blocks/*/attention/q": "transformer.h.*.attn.c_attn.q",  # q, k and v are one array
    "blocks/*/attention/k": "transformer.h.*.attn.c_attn.k",
    "blocks/*/attention/v": "transformer.h.*.attn.c_attn.v",
    "blocks/*/attention/out": "transformer.h.*.attn.c_proj",
    "blocks/*/norm2": "transformer.h.*.ln_2",
    "blocks/*/up": "transformer.h.*.mlp.c_fc",
    "blocks/*/down": "transformer.h.*.mlp.c_proj",
    "norm": "transformer.ln_f",
}
LLAMA = {
    "embed": "model.embed_tokens",
    "blocks/*/norm1": "model.layers.*.input_layernorm",
    "blocks/*/attention/q": "model.layers.*.self_attn.q_proj",
    "blocks/*/attention/k": "model.layers.*.self_attn.k_proj",
    "blocks/*/attention/v": "model.layers.*.self_attn.v_proj",
    "blocks/*/attention/out": "model.layers.*.self_attn.o_proj",
    "blocks/*/norm2": "model.layers.*.post_attention_layernorm",
    "blocks/*/gate": "model.layers.*.mlp.gate_proj",
    "blocks/*/up": "model.layers.*.mlp.up_proj",
    "blocks/*/down": "model.layers.*.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
KINDS = {"gpt2": (gpt2, GPT2), "llama": (llama, LLAMA)}  # by config["model_type"]
NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # of older files
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # (in, out), where a Linear is (out, in)
TOKENS = jax.ShapeDtypeStruct((1, 1), jnp.int32)


def turned(weights):
    """The weights with those of each Conv1D as of a Linear, or the other way round."""
    return {name: w.T if name.endswith(CONV1D) else w for name, w in weights.items()}


def names_for(names, net):
    """The names of the layers that the network has: a tied one has no head."""
    there = net.specs(TOKENS)[0]
    return {path: name for path, name in names.items() if path.partition("/")[0] in there}


def load(folder):
    """(config, build, params) of a folder: `build(cache=n)` is a network that takes the params."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] not in KINDS:
        sys.exit(f"built here: {', '.join(KINDS)}; in {folder}: {config['model_type']}")
    build, names = KINDS[config["model_type"]]
    weights = fnn.convert.read_safetensors(folder)
    if config["model_type"] == "gpt2":  # OpenAI's own files leave out "transformer."
        bare = "wte.weight" in weights
        weights = {f"transformer.{name}" if bare else name: w for name, w in weights.items()}
        weights = turned(weights)
    weights = {name: w for name, w in weights.items() if not name.endswith(NO_WEIGHTS)}
    if config.get("tie_word_embeddings", config["model_type"] == "gpt2"):
        weights.pop("lm_head.weight", None)
    build = functools.partial(build, config, dtype=next(iter(weights.values())).dtype)
    params, _ = fnn.convert.from_torch(build(), weights, TOKENS, names=names_for(names, build()))
    return config, build, params


def save(folder, config, params):
    """Write a folder as Hugging Face does, for `load` and others."""
    build, names = KINDS[config["model_type"]]
    net = build(config, dtype=params["embed"]["embedding"].dtype)
    weights = fnn.convert.to_torch(net, params, {}, TOKENS, names=names_for(names, net))
    weights = turned(weights) if config["model_type"] == "gpt2" else weights
    folder.mkdir(parents=True, exist_ok=True)
    fnn.convert.write_safetensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config))


# --- text


class Numbers:
    """Stands in for a tokenizer: a text is the numbers of its tokens."""

    def encode(self, text):
        return [int(number) for number in text.split()]

    def decode(self, tokens):
        return " ".join(map(str, tokens))


def tokenizer_of(folder):
    """Its `encode` gives numbers of tokens, or what has them as `ids`."""
    if not (folder / "tokenizer.json").exists():
        return Numbers()
    try:
        from tokenizers import Tokenizer
    except ImportError:
        sys.exit("tokenizer.json is read by the library tokenizers: pip install tokenizers")
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def write(build, params, config, tokenizer, prompt, *, temperature, key):
    """Print the prompt and what follows it, token by token; return the tokens of both."""
    encoded = tokenizer.encode(prompt)
    tokens = list(getattr(encoded, "ids", encoded))
    room = config.get("n_positions", config.get("max_position_embeddings"))
    steps = min(STEPS, room - len(tokens))
    if not tokens or steps < 1:
        sys.exit(f"a prompt of 1 to {room - 1} tokens is wanted, and this one has {len(tokens)}")
    writing = fnn.generation.stepwise(build(cache=len(tokens) + steps))
    end = config.get("eos_token_id")
    options = {"stop": () if end is None else end, "temperature": temperature, "top_p": TOP_P}
    shown = tokenizer.decode(tokens)
    print(shown, end="", flush=True)
    for token in writing(params, np.array(tokens, np.int32), steps, key=key, **options):
        tokens.append(int(token))
        text = tokenizer.decode(tokens)
        if not text.endswith("\ufffd"):  # a part of a character, which the next tokens complete
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()
    return tokens


def difference(build, params, tokens):
    """How far logits through the cache, in two pieces, are from those without."""
    x, cached = np.array([tokens], np.int32), build(cache=len(tokens))

    @jax.jit
    def both(params):
        state, pieces = cached.init(jax.random.key(0), x)[1], []
        for piece in (x[:, :-3], x[:, -3:]):
            logits, state = cached.apply(params, state, piece)
            pieces.append(logits)
        return jnp.concatenate(pieces, axis=1), build()(params, x)

    return np.abs(np.subtract(*both(params))).max()


# --- the command

SMALL = {  # as in their config.json
    "gpt2": {"model_type": "gpt2", "vocab_size": 100, "n_positions": 64, "n_embd": 32, "n_head": 4,
             "n_layer": 2},
    "llama": {"model_type": "llama", "vocab_size": 100, "max_position_embeddings": 64,
              "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
              "num_hidden_layers": 2, "intermediate_size": 64, "rms_norm_eps": 1e-6,
              "rope_theta": 10_000.0},
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, help="with config.json and weights")
    parser.add_argument("--prompt", default="3 1 4 1 5")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/pretrained"))
    args = parser.parse_args()

    folders = [args.folder] if args.folder else [args.out / kind for kind in SMALL]
    for folder in folders:
        if not args.folder:
            config = SMALL[folder.name]
            net = KINDS[folder.name][0](config)
            save(folder, config, net.init(jax.random.key(args.seed), TOKENS)[0])
        start = time.perf_counter()
        config, build, params = load(folder)
        took = time.perf_counter() - start
        count = fnn.tree.count(params)
        print(f"{config['model_type']}: {count:,} parameters read from {folder} in {took:.1f} s")
        tokens = write(
            build, params, config, tokenizer_of(folder), args.prompt,
            temperature=args.temperature, key=jax.random.key(args.seed),
        )  # fmt: skip
        if not args.folder:
            apart = difference(build, params, tokens)
            print(f"logits with and without the cache differ by {apart:.0e}\n")


if __name__ == "__main__":
    main()
