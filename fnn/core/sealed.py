"""Text with its own sum: a line of JSON, {"sha256": of the rest}, then the text."""

import hashlib
import json


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sealed(text: str) -> bytes:
    """The text with its sum in front.

    >>> unsealed(sealed("a text"))
    'a text'
    """
    return _seal(text.encode()) + b"\n" + text.encode()


def unsealed(data: bytes) -> str:
    """The text, once its sum is right; ValueError if it is not."""
    seal, _, text = data.partition(b"\n")
    if seal != _seal(text):
        raise ValueError("does not have its sha256")
    return text.decode()


def _seal(text: bytes) -> bytes:
    return json.dumps({"sha256": sha256(text)}).encode()
