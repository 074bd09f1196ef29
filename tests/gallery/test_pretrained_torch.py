"""Files that PyTorch writes of its own GPT-2 and Llama give here the same logits and texts."""

import json

import jax
import numpy as np
import pytest

import fnn
from tests.gallery import oracles
from tests.gallery.support import example
from tests.support import assert_close

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file
nn, F = torch.nn, torch.nn.functional
EXAMPLE = example("pretrained")
T, STEPS = 6, 5


class Conv1D(nn.Module):
    """A linear layer that keeps its weight (in, out)."""

    def __init__(self, n, m):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(n, m)), nn.Parameter(torch.empty(m))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


def heads(x, n):
    return x.unflatten(-1, (n, -1)).transpose(1, 2)  # [B, N, T, D]


def attend(q, k, v):
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return y.transpose(1, 2).flatten(2)


class Gpt2Block(nn.Module):
    def __init__(self, c, n):
        super().__init__()
        self.n = n
        self.ln_1, self.ln_2 = nn.LayerNorm(c, eps=1e-5), nn.LayerNorm(c, eps=1e-5)
        self.attn = nn.ModuleDict({"c_attn": Conv1D(c, 3 * c), "c_proj": Conv1D(c, c)})
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(c, 4 * c), "c_proj": Conv1D(4 * c, c)})

    def forward(self, h):
        q, k, v = (heads(a, self.n) for a in self.attn["c_attn"](self.ln_1(h)).chunk(3, -1))
        h = h + self.attn["c_proj"](attend(q, k, v))
        up = F.gelu(self.mlp["c_fc"](self.ln_2(h)), approximate="tanh")
        return h + self.mlp["c_proj"](up)


class Gpt2(nn.Module):
    def __init__(self, config):
        super().__init__()
        c, n = config["n_embd"], config["n_head"]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config["vocab_size"], c),
                "wpe": nn.Embedding(config["n_positions"], c),
                "h": nn.ModuleList(Gpt2Block(c, n) for _ in range(config["n_layer"])),
                "ln_f": nn.LayerNorm(c, eps=1e-5),
            }
        )

    def forward(self, x):
        parts = self.transformer
        h = parts["wte"](x) + parts["wpe"](torch.arange(x.shape[1]))
        for block in parts["h"]:
            h = block(h)
        return parts["ln_f"](h) @ parts["wte"].weight.T


def rotate(x, base):
    half = x.shape[-1] // 2
    speed = base ** (-torch.arange(half) / half)
    angles = torch.outer(torch.arange(x.shape[-2]), speed).repeat(1, 2)
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angles.cos() + turned * angles.sin()


class LlamaBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        c, hidden, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        self.n, self.k = config["num_attention_heads"], config["num_key_value_heads"]
        self.base, eps = config["rope_parameters"]["rope_theta"], config["rms_norm_eps"]

        def linear(n, m):
            return nn.Linear(n, m, bias=False)

        self.input_layernorm = nn.RMSNorm(c, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(c, eps=eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": linear(c, self.n * d),
                "k_proj": linear(c, self.k * d),
                "v_proj": linear(c, self.k * d),
                "o_proj": linear(self.n * d, c),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": linear(c, hidden),
                "up_proj": linear(c, hidden),
                "down_proj": linear(hidden, c),
            }
        )

    def forward(self, h):
        x, a = self.input_layernorm(h), self.self_attn
        q, k = heads(a["q_proj"](x), self.n), heads(a["k_proj"](x), self.k)
        q, k = rotate(q, self.base), rotate(k, self.base)
        h = h + a["o_proj"](attend(q, k, heads(a["v_proj"](x), self.k)))
        x = self.post_attention_layernorm(h)
        up = F.silu(self.mlp["gate_proj"](x)) * self.mlp["up_proj"](x)
        return h + self.mlp["down_proj"](up)


class Llama(nn.Module):
    def __init__(self, config):
        super().__init__()
        c, v = config["hidden_size"], config["vocab_size"]
        layers = nn.ModuleList(LlamaBlock(config) for _ in range(config["num_hidden_layers"]))
        norm = nn.RMSNorm(c, eps=config["rms_norm_eps"])
        self.model = nn.ModuleDict(
            {"embed_tokens": nn.Embedding(v, c), "layers": layers, "norm": norm}
        )
        self.lm_head = nn.Linear(c, v, bias=False)

    def forward(self, x):
        h = self.model["embed_tokens"](x)
        for block in self.model["layers"]:
            h = block(h)
        return self.lm_head(self.model["norm"](h))


@pytest.mark.parametrize(
    ("module", "config"),
    [(Gpt2, oracles.GPT2), (Llama, oracles.LLAMA)],
    ids=["gpt2", "llama"],
)
def test_logits_and_texts_are_those_of_torch(module, config, tmp_path):
    torch.manual_seed(0)
    net = module(config).eval()
    x = torch.randint(config["vocab_size"], (2, T))
    with torch.no_grad():
        for name, value in net.named_parameters():
            one = "norm" in name or ".ln_" in name
            value.copy_(0.5 * torch.randn_like(value) + one * name.endswith("weight"))
        wanted, text = net(x), x
        for _ in range(STEPS):
            text = torch.cat([text, net(text)[:, -1:].argmax(-1)], 1)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))

    _, build, params = EXAMPLE.load(tmp_path)
    prompts = np.int32(x)
    assert_close(jax.jit(build())(params, prompts), wanted.numpy(), tolerance=2e-5)
    writer = build(cache=T + STEPS)
    found = jax.jit(lambda p: fnn.generate(writer, p, prompts, STEPS, temperature=0.0))(params)
    np.testing.assert_array_equal(found.tokens, text.numpy()[:, T:])
