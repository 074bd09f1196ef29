"""Whole networks of PyTorch itself compute in fnn what they did, in whatever order a file is."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fnn
from fnn import convert, errors, tree
from fnn.convert.arrays import on_host
from tests.support import assert_close

torch = pytest.importorskip("torch")
nn = torch.nn
B, T, C, HEADS = 2, 5, 8, 2
RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def drawn(module):
    """The module in evaluation mode, with values far from its first ones."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                shift = 1 if "norm" in name or "bn" in name or "running" in name else 0
                value.copy_(0.3 * torch.rand_like(value) + shift)
    return module.eval()


def run_torch(module, *xs):
    with torch.no_grad():
        y = module(*map(torch.from_numpy, xs))
    return (y[0] if isinstance(y, tuple) else y).numpy()


def orders(state_dict):
    """As a live dict, as files have it, and as nobody has it."""
    keys = list(state_dict)
    yield state_dict
    for some in (sorted(keys), keys[::-1], np.random.default_rng(1).permutation(keys).tolist()):
        yield {key: state_dict[key] for key in some}


def check(net, module, x, y, *xs):
    """One set of values from every order; returns it."""
    found = []
    for state_dict in orders(module.state_dict()):
        params, state = convert.from_torch(net, state_dict, x, *xs)
        if not found:
            out = jax.jit(net)(params, x, *xs, state=state)
            assert_close(out, y, tolerance=2e-5)
        found.append((params, state))
    assert not any(tree.compare(found[0], other) for other in found[1:])
    return found[0]


def check_back(net, module, x, names, *xs):
    params, state = convert.from_torch(net, module.state_dict(), x, *xs)
    back = convert.to_torch(net, params, state, x, *xs, names=names)
    wanted = module.state_dict()
    for name, array in back.items():
        np.testing.assert_array_equal(array, wanted[name].numpy())
    left = {name for name in set(wanted) - set(back) if "num_batches" not in name}
    assert not left


# --- attention


@pytest.mark.parametrize(
    "options",
    [{}, {"kdim": 3, "vdim": 3}, {"bias": False}, {"kdim": C, "vdim": C}],
    ids=["one array", "of a memory", "no bias", "same dims"],
)
def test_multihead_attention(options):
    module = drawn(nn.MultiheadAttention(C, HEADS, batch_first=True, **options))
    net = fnn.attention(C, HEADS, use_bias=options.get("bias", True))
    x, memory = draw(B, T, C), draw(B, 4, options.get("kdim", C))
    check(net, module, x, run_torch(module, x, memory, memory), memory)
    names = {head: f"in_proj.{head}" for head in "qkv"} | {"out": "out_proj"}
    check_back(net, module, x, names, memory)


def norm_last(hidden):
    @fnn.compose(
        attention=fnn.attention(C, HEADS),
        norm1=fnn.layer_norm(eps=1e-5),
        up=fnn.dense(hidden),
        down=fnn.dense(C),
        norm2=fnn.layer_norm(eps=1e-5),
    )
    def norm_last(f, x):
        h = f.norm1(x + f.attention(x))
        return f.norm2(h + f.down(jax.nn.relu(f.up(h))))

    return norm_last


def norm_first(hidden):
    norm = lambda: fnn.layer_norm(eps=1e-5)  # noqa: E731
    options = {"hidden": hidden, "activation": jax.nn.relu, "norm": norm}
    return fnn.transformer_block(C, HEADS, **options)


@pytest.mark.parametrize("first", [True, False], ids=["norm first", "norm last"])
def test_a_transformer_encoder_into_a_stack(first):
    layer = nn.TransformerEncoderLayer(C, HEADS, 2 * C, batch_first=True, norm_first=first)
    module = nn.TransformerEncoder(layer, 11, nn.LayerNorm(C), enable_nested_tensor=False)
    block, x = norm_first(2 * C), draw(B, T, C)
    if not first:
        block = norm_last(2 * C)
    y = run_torch(drawn(module), x)
    net = fnn.serial(blocks=fnn.repeat(block, 11), norm=fnn.layer_norm(eps=1e-5))
    params, _ = check(net, module, x, y)
    names = {f"blocks/*/attention/{h}": f"layers.*.self_attn.in_proj.{h}" for h in "qkv"}
    names |= {"blocks/*/attention/out": "layers.*.self_attn.out_proj", "blocks": "layers"}
    names |= {"blocks/*/up": "layers.*.linear1", "blocks/*/down": "layers.*.linear2"}
    check_back(net, module, x, names)
    flat = fnn.serial(*[block] * 11, fnn.layer_norm(eps=1e-5))
    layers, _ = check(flat, module, x, y)
    tenth = layers[f"{block.name}10"]
    assert not tree.compare(tenth, jax.tree.map(lambda a: a[9], params["blocks"]))


def test_a_decoder_layer_attends_twice():
    module = drawn(nn.TransformerDecoderLayer(C, HEADS, 2 * C, batch_first=True))
    attention = fnn.attention(C, HEADS)

    @fnn.compose(
        attention=attention, cross=attention, up=fnn.dense(2 * C), down=fnn.dense(C),
        norm1=fnn.layer_norm(eps=1e-5), norm2=fnn.layer_norm(eps=1e-5),
        norm3=fnn.layer_norm(eps=1e-5),
    )  # fmt: skip
    def net(f, x, memory):
        h = f.norm1(x + f.attention(x))
        h = f.norm2(h + f.cross(h, memory))
        return f.norm3(h + f.down(jax.nn.relu(f.up(h))))

    x, memory = draw(B, T, C), draw(B, 4, C)
    check(net, module, x, run_torch(module, x, memory), memory)


# --- three networks as they are written


class BasicBlock(nn.Module):
    def __init__(self, channels, features, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, features, 1, stride, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x):
        h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(h + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(BasicBlock(4, 4, 1), BasicBlock(4, 4, 1))
        self.layer2 = nn.Sequential(BasicBlock(4, 8, 2), BasicBlock(8, 8, 1))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        h = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(h.mean((2, 3)))


def basic_block(features, stride):
    def conv(stride, size=3):
        padding = size // 2
        return fnn.conv(features, (size, size), strides=stride, padding=padding, use_bias=False)

    h = fnn.serial(conv(stride), fnn.batch_norm(), jax.nn.relu, conv(1), fnn.batch_norm())
    shortcut = fnn.serial(conv(stride, 1), fnn.batch_norm()) if stride > 1 else None
    return fnn.serial(fnn.residual(h, shortcut), jax.nn.relu)


RESNET = fnn.serial(
    fnn.conv(4, (3, 3), padding=1, use_bias=False),
    fnn.batch_norm(),
    jax.nn.relu,
    stage1=fnn.serial(basic_block(4, 1), basic_block(4, 1)),
    stage2=fnn.serial(basic_block(8, 2), basic_block(8, 1)),
    pool=fnn.global_avg_pool(2),
    head=fnn.dense(3),
)


def test_a_residual_network():
    module, x = drawn(ResNet()), draw(B, 3, 8, 8)
    check(RESNET, module, np.moveaxis(x, 1, -1), run_torch(module, x))


RESNET_DICT = ResNet().state_dict()
RESNET_SHAPE = (1, 8, 8, 3)


@settings(max_examples=6)
@given(st.permutations(list(RESNET_DICT)))
def test_a_residual_network_in_any_order(keys):
    some = {key: RESNET_DICT[key] for key in keys}
    wanted = convert.from_torch(RESNET, RESNET_DICT, RESNET_SHAPE)
    assert not tree.compare(convert.from_torch(RESNET, some, RESNET_SHAPE), wanted)


class Gpt2Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(C)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C), "c_proj": nn.Linear(C, C)})
        self.ln_2 = nn.LayerNorm(C)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C)})

    def forward(self, x):
        q, k, v = self.attn["c_attn"](self.ln_1(x)).split(C, -1)
        q, k, v = (a.unflatten(-1, (HEADS, -1)).transpose(1, 2) for a in (q, k, v))
        h = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](h.transpose(1, 2).flatten(2))
        h = nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.mlp["c_proj"](h)


class Gpt2(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(T, C),  # as many tokens as positions
                "wpe": nn.Embedding(T, C),
                "h": nn.ModuleList([Gpt2Block() for _ in range(11)]),
                "ln_f": nn.LayerNorm(C),
            }
        )
        self.lm_head = nn.Linear(C, T, bias=False)

    def forward(self, x):
        own = self.transformer
        h = own["wte"](x) + own["wpe"](torch.arange(x.shape[1]))
        for block in own["h"]:
            h = block(h)
        return self.lm_head(own["ln_f"](h))


@fnn.compose(
    embed=fnn.embedding(T, C),
    position=fnn.embedding(T, C),
    blocks=fnn.repeat(
        fnn.transformer_block(C, HEADS, causal=True, norm=lambda: fnn.layer_norm(eps=1e-5)), 11
    ),
    norm=fnn.layer_norm(eps=1e-5),
    head=fnn.dense(T, use_bias=False),
)
def gpt2(f, x):
    h = f.embed(x) + f.position(jnp.arange(x.shape[-1]))[None]
    return f.head(f.norm(f.blocks(h)))


def test_a_decoder_as_gpt2_is_named():
    module, x = drawn(Gpt2()), RNG.integers(0, T, (B, T))
    check(gpt2, module, np.int32(x), run_torch(module, x))
    names = {"embed": "transformer.wte", "position": "transformer.wpe", "head": "lm_head"}
    block = "transformer.h.*"
    names |= {f"blocks/*/attention/{h}": f"{block}.attn.c_attn.{h}" for h in "qkv"}
    names |= {"blocks/*/attention/out": f"{block}.attn.c_proj", "blocks/*/norm1": f"{block}.ln_1"}
    names |= {"blocks/*/up": f"{block}.mlp.c_fc", "blocks/*/down": f"{block}.mlp.c_proj"}
    names |= {"blocks/*/norm2": f"{block}.ln_2", "norm": "transformer.ln_f"}
    check_back(gpt2, module, np.int32(x), names)


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, C, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, C))
        layer = nn.TransformerEncoderLayer(C, HEADS, C, batch_first=True, norm_first=False)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(C)
        self.head = nn.Linear(C, C)

    def forward(self, x):
        h = self.patch_embed(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls_token.expand(len(h), -1, -1), h], 1) + self.pos_embed
        return self.head(self.norm(self.encoder(h)[:, 0]))


@fnn.compose(
    patches=fnn.conv(C, (4, 4), strides=4, padding=0),
    cls_token=fnn.parameter((1, 1, C)),
    pos_embed=fnn.parameter((1, 5, C)),
    blocks=fnn.repeat(norm_last(C), 3),
    norm=fnn.layer_norm(eps=1e-5),
    head=fnn.dense(C),
)
def vit(f, x):
    h = f.patches(x)
    h = h.reshape(len(h), -1, C)
    first = jnp.broadcast_to(f.cls_token(), (len(h), 1, C))
    h = jnp.concatenate([first, h], axis=1) + jnp.broadcast_to(f.pos_embed(), (len(h), 5, C))
    return f.head(f.norm(f.blocks(h)[:, 0]))


def test_a_vision_transformer():
    """Its hidden layer is as wide as x, so that up, down, out and the head have one shape."""
    module, x = drawn(ViT()), draw(B, 3, 8, 8)
    images, y = np.moveaxis(x, 1, -1), run_torch(module, x)
    names = {"blocks/*/up": "encoder.layers.*.linear1", "blocks/*/down": "encoder.layers.*.linear2"}
    for state_dict in orders(module.state_dict()):
        with pytest.raises(errors.ParamsError, match="which is which of .*blocks/0/up"):
            convert.from_torch(vit, state_dict, images)
        params, state = convert.from_torch(vit, state_dict, images, names=names)
        assert_close(jax.jit(vit)(params, images, state=state), y, tolerance=2e-5)


# --- tensors and files


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_tensors_of_other_dtypes(dtype):
    linear = drawn(nn.Linear(3, 2)).to(getattr(torch, dtype))
    wanted = jnp.dtype(dtype)
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        pytest.skip("without x64")
    params, _ = convert.from_torch(
        fnn.dense(2), linear.state_dict(), jax.ShapeDtypeStruct((1, 3), wanted)
    )
    assert params["kernel"].dtype == wanted
    weight = linear.weight.detach().double().numpy()
    np.testing.assert_array_equal(np.float64(params["kernel"]), weight.T)
    with pytest.raises(errors.DtypeError, match=rf"weight of {dtype}.*jnp\.{dtype}"):
        convert.from_torch(fnn.dense(2), linear.state_dict(), (1, 3))


def test_eight_bit_floats_are_read():
    eight = {"": torch.ones(3).to(torch.float8_e4m3fn)}
    assert on_host("x", eight[""]).dtype == jnp.float8_e4m3fn


def test_shapes_are_said_plainly():
    with pytest.raises(errors.ParamsError) as caught:
        convert.from_torch(
            fnn.serial(fnn.dense(2)), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).state_dict(),
            (1, 3),
        )  # fmt: skip
    assert "0 (bias (3,), weight (3, 3))" in str(caught.value)
    assert "Size" not in str(caught.value)


class Named(nn.Module):
    """Layers of one shape whose names tell nothing, registered in the order of their use."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.apex = (nn.Linear(C, C) for _ in range(3))

    def forward(self, x):
        return self.apex(torch.tanh(self.body(torch.tanh(self.stem(x)))))


NAMED = fnn.serial(fnn.dense(C), jnp.tanh, fnn.dense(C), jnp.tanh, fnn.dense(C))


def test_the_order_of_registration_is_kept_by_files_of_torch():
    module, x = drawn(Named()), draw(B, C)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    for state_dict in (module.state_dict(), torch.load(file, weights_only=True)):
        params, _ = convert.from_torch(NAMED, state_dict, x)
        assert_close(NAMED(params, x), run_torch(module, x), tolerance=1e-5)
    _, *others = orders(module.state_dict())
    others += [dict(module.named_parameters()), {k: v.half() for k, v in others[0].items()}]
    for other in others:
        with pytest.raises(errors.ParamsError, match="which is which of dense1, dense2, dense3"):
            convert.from_torch(NAMED, other, x)
        names = {"dense1": "stem", "dense3": "apex"}
    params, _ = convert.from_torch(NAMED, others[0], x, names=names)
    assert_close(NAMED(params, x), run_torch(module, x), tolerance=1e-5)


def test_a_file_of_safetensors(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    module, x = drawn(nn.Sequential(*[nn.Linear(C, C) for _ in range(12)])), draw(B, C)
    files.save_file(module.state_dict(), tmp_path / "net.safetensors")
    net = fnn.serial(*[fnn.dense(C) for _ in range(12)])
    params, _ = convert.from_torch(net, files.load_file(tmp_path / "net.safetensors"), x)
    assert_close(net(params, x), run_torch(module, x), tolerance=1e-5)
    plain = pytest.importorskip("safetensors.numpy")
    params2, _ = convert.from_torch(net, plain.load_file(tmp_path / "net.safetensors"), x)
    assert not tree.compare(params, params2)
