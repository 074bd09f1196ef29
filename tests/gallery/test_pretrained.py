"""Pretrained weights compute here what they do by the equations, from files in either layout."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.gallery import oracles
from tests.gallery.support import example, numbers, run
from tests.support import assert_close

EXAMPLE = example("pretrained")
T, STEPS = 5, 4
PROMPTS = np.random.default_rng(2).integers(0, 11, (3, T)).astype(np.int32)
LENGTHS = np.array([5, 2, 4], np.int32)
RNG = np.random.default_rng(3)
TIED = oracles.LLAMA | {"tie_word_embeddings": True, "head_dim": 6}


def case(name):
    """(config, weights, logits of [T] tokens by the equations)."""
    if name == "gpt2":
        config, weights = oracles.GPT2, oracles.gpt2_weights(oracles.GPT2, RNG)
        return config, weights, oracles.gpt2_logits
    config = TIED if name == "tied llama" else oracles.LLAMA
    return config, oracles.llama_weights(config, RNG), oracles.llama_logits


def folder_of(tmp_path, config, weights, shards=1):
    """A folder as Hugging Face writes it."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    if shards == 1:
        oracles.write_file(tmp_path / "model.safetensors", weights)
        return tmp_path
    files = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        some = {name: weights[name] for name in weights if files[name] == file}
        oracles.write_file(tmp_path / file, some, {"__metadata__": {"format": "pt"}})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return tmp_path


def greedy(logits_of, weights, config, prompt):
    text = list(prompt)
    for _ in range(STEPS):
        text.append(int(np.argmax(logits_of(weights, config, np.array(text))[-1])))
    return text[len(prompt) :]


@pytest.mark.parametrize("name", ["gpt2", "llama", "tied llama"])
def test_logits_and_texts_are_those_of_the_equations(name, tmp_path):
    config, weights, logits_of = case(name)
    folder = folder_of(tmp_path, config, weights, shards=3 if name == "llama" else 1)
    _, build, params = EXAMPLE.load(folder)
    found = jax.jit(build())(params, PROMPTS)
    for row in range(3):
        assert_close(found[row], logits_of(weights, config, PROMPTS[row]), tolerance=1e-5)
    writer = build(cache=T + STEPS)
    text = jax.jit(
        lambda p, x, n: fnn.generate(writer, p, x, STEPS, lengths=n, temperature=0.0).tokens
    )(params, PROMPTS, LENGTHS)
    for row, n in enumerate(LENGTHS):
        assert text[row].tolist() == greedy(logits_of, weights, config, PROMPTS[row, :n])

    EXAMPLE.save(tmp_path / "again", config, params)
    again = fnn.convert.read_safetensors(tmp_path / "again")
    assert set(again) == set(weights)
    for path, array in again.items():
        np.testing.assert_array_equal(array, weights[path])


def test_files_of_before_with_buffers_and_without_a_prefix(tmp_path):
    config, weights, _ = case("gpt2")
    bare = {name.removeprefix("transformer."): array for name, array in weights.items()}
    bare |= {f"h.{i}.attn.bias": np.ones((1, 1, 16, 16), np.float32) for i in range(2)}
    older = {name: config[name] for name in config if name != "layer_norm_epsilon"}
    plain, before = tmp_path / "plain", tmp_path / "before"
    for folder in (plain, before):
        folder.mkdir()
    _, _, wanted = EXAMPLE.load(folder_of(plain, config, weights))
    _, _, params = EXAMPLE.load(folder_of(before, older, bare))
    assert not fnn.tree.compare(params, wanted)


def test_weights_keep_their_dtype(tmp_path):
    config, weights, _ = case("llama")
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    _, build, params = EXAMPLE.load(folder_of(tmp_path, config, half))
    assert {a.dtype.name for a in jax.tree.leaves(params)} == {"float16"}
    assert jax.eval_shape(build(), params, PROMPTS).dtype == jnp.float16


def test_other_folders_are_refused(tmp_path):
    config, weights, _ = case("llama")
    for change, text in (
        ({"model_type": "bert"}, "built here: gpt2, llama; .*bert"),
        (
            {"rope_scaling": {"type": "linear"}, "rope_parameters": None},
            "rotary positions 'linear'",
        ),
        ({"attention_bias": True}, "biases in attention alone"),
    ):
        with pytest.raises(SystemExit, match=text):
            EXAMPLE.load(folder_of(tmp_path, config | change, weights))
    with pytest.raises(fnn.errors.ParamsError, match="other"):
        EXAMPLE.load(folder_of(tmp_path, config | {"tie_word_embeddings": True},
                               weights | {"other.weight": np.ones(3, np.float32)}))  # fmt: skip


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(EXAMPLE, "STEPS", 4)
    monkeypatch.delitem(EXAMPLE.SMALL, "gpt2")  # one of two, to save time
    out = run(EXAMPLE, "--temperature 0", tmp_path, monkeypatch, capsys)
    assert len(out.splitlines()[1].split()) == 5 + 4 and "\n3 1 4 1 5 " in out
    assert all(apart < 1e-4 for apart in numbers(r"differ by (\S+)", out))
    for prompt, text in (("--prompt=", "this one has 0"), (f"--prompt={'1 ' * 64}", "has 64")):
        argv = ["pretrained", "--folder", str(tmp_path / "llama"), prompt]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit, match=text):
            EXAMPLE.main()


def test_tokens_become_text_as_they_come(tmp_path, monkeypatch, capsys):
    class Letters:
        """As of the library tokenizers: `encode` gives what has `ids`."""

        @staticmethod
        def from_file(path):
            assert path.endswith("tokenizer.json")
            return Letters()

        def encode(self, text):
            return type("Encoding", (), {"ids": [ord(c) - 97 for c in text]})()

        def decode(self, tokens):
            whole = "".join(chr(97 + i % 26) for i in tokens)
            return whole if len(tokens) % 2 else f"{whole[:-1]}\ufffd"  # half a character

    config, weights, logits_of = case("gpt2")
    folder = folder_of(tmp_path, config, weights)
    (folder / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", type("tokenizers", (), {"Tokenizer": Letters}))
    monkeypatch.setattr(EXAMPLE, "STEPS", STEPS)
    out = run(EXAMPLE, f"--folder {folder} --prompt fab --temperature 0", tmp_path, monkeypatch,
              capsys)  # fmt: skip
    assert "\ufffd" not in out
    text = greedy(logits_of, weights, config, [5, 0, 1])
    assert out.splitlines()[1] == "fab" + "".join(chr(97 + i) for i in text)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SystemExit, match="pip install tokenizers"):
        EXAMPLE.tokenizer_of(folder)
