"""Text, or any sequence of tokens, written by a network with caches or by a recurrent cell.

prompts -> one reading of all -> a loop of (logits -> filters -> draw -> read) -> tokens

`generate` draws, `beam_search` looks for the likeliest, `stepwise` hands over each token as it
comes, and `unroll_generate` runs a cell on its own outputs, which may be other than tokens.
`top_k`, `top_p`, `min_p` and `penalize` are what restricts the draw, `logits -> logits`.
"""

from fnn.generation.beams import Beams, beam_search
from fnn.generation.generate import Written, generate
from fnn.generation.samplers import draw, min_p, penalize, top_k, top_p
from fnn.generation.stepwise import stepwise
from fnn.generation.unroll import Generated, unroll_generate

__all__ = [
    "Beams", "Generated", "Written", "beam_search", "draw", "generate", "min_p", "penalize",
    "stepwise", "top_k", "top_p", "unroll_generate",
]  # fmt: skip
