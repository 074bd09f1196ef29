"""What names say."""

from fnn.convert.words import natural, role, words


def test_words_roles_and_numbers():
    assert words("encoder.layers.3.self_attn.q_proj")[:2] == ["encoder", "block"]
    assert "transpose" in words("conv2_d_transpose") and "transpose" in words("ConvTranspose_0")
    for name in ("LayerNorm_0", "layer_norm", "ln_1", "layernorm", "layer_normalization_3"):
        assert words(name) == ["layernorm", "norm"]
    assert words("batch_normalization") == words("bn1") == ["batchnorm", "norm"]
    roles = {"attn.c_q": "q", "h.value": "v", "output.dense": "out", "c_fc": "up", "w1": None}
    assert {name: role(name) for name in roles} == roles
    assert role("w1", gated=True) == "gate"
    assert natural(["b.10", "b.9"]) == ["b.9", "b.10"]
    assert natural(["dense", "dense_10", "dense_2"]) == ["dense", "dense_2", "dense_10"]
    assert natural(["10", "2.1", "2.0"]) == ["2.0", "2.1", "10"]
    assert natural(["a", "a.0"]) is None and natural(["a", "b"]) is None
