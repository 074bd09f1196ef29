"""What a layer's name says: its words, its role and its numbers.

encoder.layers.3.self_attn.q_proj has the words encoder, block, self, attention, q and proj, the
role q, and the number 3. Libraries name one thing differently; these are mapped to one word.
"""

from __future__ import annotations

import re

_ELSEWHERE = {  # a word here: its synonyms elsewhere
    "attention": "attn mha",
    "batchnorm": "batchnorm bn",
    "block": "layer h resblock encoderblock",
    "cross": "multihead crossattention",
    "embedding": "embed emb wte wpe",
    "groupnorm": "groupnorm gn",
    "head": "classifier unembed",
    "instancenorm": "instancenorm",
    "k": "key wk",
    "layernorm": "layernorm ln",
    "norm": "batchnorm bn groupnorm gn instancenorm layernorm ln rmsnorm",
    "out": "o wo output",
    "position": "pos positional wpe",
    "q": "query wq",
    "rmsnorm": "rmsnorm",
    "shortcut": "downsample skip",
    "token": "tok word wte",
    "v": "value wv",
}
_ROLES = {"q", "k", "v", "out", "up", "gate", "down", "shortcut"}
_PARTS = {"c_fc": "up", "wi": "up"}  # whole parts of names that are roles
_GATED = {"w1": "gate", "w3": "up", "wi_0": "gate", "wi_1": "up"}  # so are these, of gated blocks
_PLACES = {  # norms named for their place, by number
    "attention_norm": ("norm", 1),
    "ffn_norm": ("norm", 2),
    "input_layernorm": ("norm", 1),
    "layernorm_after": ("norm", 2),
    "layernorm_before": ("norm", 1),
    "post_attention_layernorm": ("norm", 2),
}
_KIND_OF_NORM = re.compile(r"(layer|batch|group|rms|instance)_?norm(?:alization)?")
_NEW_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_HERE: dict[str, list[str]] = {}
for _word, _others in _ELSEWHERE.items():
    for _other in _others.split():
        _HERE.setdefault(_other, []).append(_word)


def words(name: str) -> list[str]:
    """The words of a name in their order, mapped to the words used here.

    >>> words("encoder.LayerNorm_0"), words("h/11/ln_2")
    (['encoder', 'layernorm', 'norm'], ['block', 'layernorm', 'norm'])
    """
    apart = _KIND_OF_NORM.sub(r"_\1norm_", _NEW_WORD.sub("_", name).lower())
    found: list[str] = []
    for word in re.findall("[a-z]+", apart):
        single = word[:-1] if re.fullmatch(r".{2,}[^s]s", word) else word
        found += _HERE.get(word) or _HERE.get(single) or [single]
    return found


def signs(name: str) -> frozenset[str]:
    """The words of a name, and whether it lies in a numbered block."""
    inside = any(numbered(part)[1] >= 0 for part in parts_of(name)[:-1])
    return frozenset(words(name)) | ({"#"} if inside else frozenset())


def role(name: str, *, gated: bool = False) -> str | None:
    """The last word of a name that is a role, such as q or down; None without one.

    - `gated`: whether the names are of a block in which w1, w2 and w3 are gate, down and up.
    """
    part = parts_of(name)[-1].lower()
    if gated and part in _GATED:
        return _GATED[part]
    return _PARTS.get(part) or next((word for word in words(name)[::-1] if word in _ROLES), None)


def says_gated(names: list[str]) -> bool:
    """Whether the names include both numbered projections of a gated block."""
    last = {parts_of(name)[-1].lower() for name in names}
    return {"w1", "w3"} <= last or {"wi_0", "wi_1"} <= last


def parts_of(name: str) -> list[str]:
    return re.split("[./]", name)


def numbered(part: str) -> tuple[str, int]:
    """One part of a name without the number at its end, and that number; -1 without one.

    >>> numbered("Dense_10"), numbered("dense"), numbered("3")
    (('Dense', 10), ('dense', -1), ('', 3))
    """
    if part in _PLACES:
        return _PLACES[part]
    stem, number = re.fullmatch(r"(.*?)_?(\d*)", part, re.DOTALL).groups()  # pyright: ignore
    return stem, int(number) if number else -1


def natural(names: list[str], depth: int = 0) -> list[str] | None:
    """Names in the order of their numbers; None if something else distinguishes two of them.

    >>> natural(["layers.10", "layers.9.1", "layers.9.0"])
    ['layers.9.0', 'layers.9.1', 'layers.10']
    >>> natural(["layers.0.first", "layers.0.second"])
    """
    if len(names) < 2:
        return names
    heads: dict[str, list[str]] = {}
    for name in names:
        parts = parts_of(name)
        if len(parts) == depth:
            return None
        heads.setdefault(parts[depth], []).append(name)
    found = {numbered(head) for head in heads}
    if len({stem for stem, _ in found}) > 1 or len(found) < len(heads):
        return None
    below = [natural(heads[head], depth + 1) for head in sorted(heads, key=numbered)]
    return None if None in below else [name for some in below for name in some or ()]


def levels(names: list[str]) -> list[str]:
    """The words before the numbers that distinguish names which are otherwise equal.

    >>> levels(["layers.0.norm1", "layers.0.norm2", "layers.1.norm1"])
    ['', 'norm']
    """
    split = [[numbered(part) for part in parts_of(name)] for name in names]
    if len({tuple(stem for stem, _ in parts) for parts in split}) > 1:
        return []
    varying = (column for column in zip(*split, strict=True) if len(set(column)) > 1)
    return [(words(column[0][0]) or [""])[-1] for column in varying]
