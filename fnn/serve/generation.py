"""Text token by token, by a network with a step: `POST /generate`, streamed."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fnn.serve.batcher import Batcher
from fnn.serve.bodies import Gone, Reader, Receive, Send, busy, refuse
from fnn.serve.messages import JSON, Refused, from_json
from fnn.serve.monitoring import Monitor

if TYPE_CHECKING:
    from fnn.export import Artifact, Step

STREAMS = 16  # at a time
TOKENS = 1024  # of a prompt and its continuation
AT_ONCE = 16  # tokens of a prompt that are read while requests wait


class Wish(NamedTuple):
    """What a request asks for; `temperature` 0 takes the likeliest token, `top_k` 0 any."""

    prompt: Any
    max_tokens: int = 100
    temperature: float = 1.0
    top_k: int = 0
    seed: int | None = None


class Writer(NamedTuple):
    """A step (carry, token) -> (carry, logits), and the words for its tokens.

    - `shape`: of the tokens of one step of one text, (1,) or (1, 1).
    - `words`: the labels, if there is one for each token; else None, and tokens are numbers.
    - `most`: tokens that a text may have.
    """

    step: Step
    shape: tuple[int, ...]
    dtype: Any
    count: int
    words: tuple[str, ...] | None
    most: int

    def first(self) -> Any:
        return self.step.first(np.zeros(self.shape, self.dtype))

    def read(self, carry: Any, tokens: Sequence[int]) -> tuple[Any, np.ndarray]:
        """The carry and the logits after so many tokens."""
        y: Any = None
        for token in tokens:
            carry, y = self.step(carry, np.full(self.shape, token, self.dtype))
        return carry, np.asarray(y, np.float64).ravel()

    def tokens(self, prompt: Any) -> list[int]:
        """The tokens of a prompt: of a text the longest words that fit, from left to right."""
        if isinstance(prompt, list):
            good = all(type(token) is int and 0 <= token < self.count for token in prompt)
            if not good:
                raise Refused(422, f"prompt: expected tokens from 0 to {self.count - 1}")
            found = prompt
        elif isinstance(prompt, str) and self.words:
            found = self._matched(prompt)
        else:
            wanted = "a text or a list of tokens" if self.words else "a list of tokens"
            raise Refused(422, f"prompt: expected {wanted}, got {type(prompt).__name__}")
        if not 1 <= len(found) <= self.most:
            raise Refused(422, f"prompt: expected 1 to {self.most} tokens, got {len(found)}")
        return found

    def _matched(self, text: str) -> list[int]:
        numbers = {word: i for i, word in enumerate(self.words or ()) if word}
        longest, found, at = max(map(len, numbers)), [], 0
        while at < len(text) and len(found) <= self.most:
            ends = range(min(at + longest, len(text)), at, -1)
            end = next((end for end in ends if text[at:end] in numbers), None)
            if end is None:
                raise Refused(422, f"prompt: no label for {text[at]!r}")
            found.append(numbers[text[at:end]])
            at = end
        return found


def writer_of(artifact: Artifact) -> Writer | None:
    """The writer in an artifact: the first step from whole numbers to logits, if there is one."""
    manifest = artifact.manifest
    for name, step in getattr(artifact, "steps", {}).items():
        said = manifest["programs"][name]
        inputs, outputs = said["inputs"], said["outputs"]
        if len(inputs) != 1 or len(outputs) != 1 or not inputs[0]["dtype"].startswith("int"):
            continue
        shape, logits = inputs[0]["shape"], outputs[0]["shape"]
        one = not any(isinstance(size, int) for size in shape) and 1 <= len(shape) <= 2
        if not one or len(logits) != len(shape) + 1 or not isinstance(logits[-1], int):
            continue
        labels = manifest.get("labels")
        words = tuple(labels) if labels and len(labels) == logits[-1] else None
        limits = [TOKENS]
        for rule in manifest.get("constraints") or ():
            if found := re.fullmatch(r"(\w+) *<= *(\d+)", rule):
                limits += [int(found[2])] * (found[1] in shape[1:])
        dtype = np.dtype(inputs[0]["dtype"])
        return Writer(step, (1,) * len(shape), dtype, logits[-1], words, min(limits))
    return None


def wish_of(body: bytes | bytearray) -> Wish:
    """What a body asks for; raises Refused."""
    values = from_json(body, None)
    unknown = set(values) - set(Wish._fields)
    if unknown or "prompt" not in values:
        got = ", ".join(sorted(values))[:200] or "none"
        raise Refused(422, f"expected prompt, and any of {', '.join(Wish._fields[1:])}, got {got}")
    wish = Wish(**values)
    rules = {
        "max_tokens": type(wish.max_tokens) is int and wish.max_tokens >= 1,
        "temperature": type(wish.temperature) in (int, float) and 0 <= wish.temperature < 1e6,
        "top_k": type(wish.top_k) is int and wish.top_k >= 0,
        "seed": wish.seed is None or type(wish.seed) is int and 0 <= wish.seed < 2**63,
    }
    for name, good in rules.items():
        if not good:
            raise Refused(422, f"{name}: got {str(getattr(wish, name))[:50]}")
    return wish


def drawn(logits: np.ndarray, wish: Wish, rng: np.random.Generator) -> int:
    """A token with probability softmax(logits / temperature) among the `top_k` likeliest."""
    if not wish.temperature:
        return int(logits.argmax())
    logits = logits / wish.temperature
    if 0 < wish.top_k < len(logits):
        logits = np.where(
            logits < np.partition(logits, -wish.top_k)[-wish.top_k], -math.inf, logits
        )
    return int((logits + rng.gumbel(size=logits.shape)).argmax())


class Generate:
    """Answers a prompt by its continuation, as events with a token each."""

    path = "/generate"

    def __init__(self, writer: Writer, batcher: Batcher, reader: Reader, monitor: Monitor):
        self.writer, self.batcher, self.reader, self.monitor = writer, batcher, reader, monitor
        self.streams = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        unread = True
        try:
            headers = dict(scope["headers"])
            if (
                headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
                != JSON.encode()
            ):
                raise Refused(415, f"expected content-type {JSON}")
            body = await self.reader.read(headers, receive)
            unread = False
            if self.streams >= STREAMS or self.batcher.closed:
                raise busy()
            wish = wish_of(body)
            tokens = self.writer.tokens(wish.prompt)
        except Refused as refused:
            await refuse(refused, unread, receive, send)
            return
        except Gone:
            self.monitor.left.inc()
            return
        self.streams += 1
        gone = asyncio.create_task(until_gone(receive))
        try:
            await self._stream(tokens, wish, gone, send)
        finally:
            self.streams -= 1
            gone.cancel()

    async def _stream(self, tokens: list[int], wish: Wish, gone: Any, send: Send) -> None:
        fields = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        end: dict[str, Any] = {"done": True}
        try:
            async for token in self._written(tokens, wish):
                if gone.done():
                    self.monitor.left.inc()
                    return
                word = {"text": self.writer.words[token]} if self.writer.words else {}
                await send(event({"token": token} | word, more=True))
        except RuntimeError as error:
            end = {"error": str(error)}
        await send(event(end, more=False))

    async def _written(self, tokens: list[int], wish: Wish) -> AsyncIterator[int]:
        rng = np.random.default_rng(wish.seed)
        carry, logits = await self.batcher.call(self.writer.first), np.zeros(1)
        for at in range(0, len(tokens), AT_ONCE):
            part = tokens[at : at + AT_ONCE]
            carry, logits = await self.batcher.call(self.writer.read, carry, part)
        count = min(wish.max_tokens, self.writer.most - len(tokens))
        for left in range(count, 0, -1):
            token = drawn(logits, wish, rng)
            yield token
            if left > 1:
                carry, logits = await self.batcher.call(self.writer.read, carry, [token])


async def until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(values: dict[str, Any], *, more: bool) -> dict[str, Any]:
    """A message with one server-sent event."""
    data = f"data: {json.dumps(values)}\n\n".encode()
    return {"type": "http.response.body", "body": data, "more_body": more}
