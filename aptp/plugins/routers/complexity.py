"""Complexity: words and written text make a prompt difficult; difficult prompts get the larger experts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from aptp.core.codes import gate_by_codes, starting_logits
from aptp.core.router import PromptBatch, Router, RouterContext, Routing
from aptp.core.text import hashed
from aptp.plugins.options import ComplexityOptions

_SYLLABLE = "\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Kana, ideographs and Hangul: written without spaces or in short words, they count by the character."""
_WORD = re.compile(rf"[{_SYLLABLE}]|[^\W{_SYLLABLE}]+")
_CONTENT = re.compile(rf"[{_SYLLABLE}]|\w{{3,}}")
"""Words of under three letters are mostly articles and prepositions, in any language; no list of words is needed."""
_QUOTED = re.compile(r'"[^"]+"|“[^”]+”|„[^“”]+[“”]|«[^»]+»|「[^」]+」')


class ComplexityRouter(Router):
    """The training-free heuristic: expert i serves the i-th quantile of the training prompts' difficulty.

    Difficulties are whole numbers, and many prompts share one; a hash of the text decides among those, so that the
    experts' shares are even. Codes start in the order of their capacity, as far as width gates say it (a space
    of blocks alone has no such order), and take the denoiser's gradient; nothing holds them in it.
    """

    Options = ComplexityOptions
    learns_routes = False

    def __init__(self, options: ComplexityOptions) -> None:
        super().__init__(options)
        self.options = options

    def setup(self, context: RouterContext) -> None:
        self.context, experts = context, context.num_experts
        edges = torch.zeros(experts - 1, dtype=torch.float64)
        if len(context.prompts):
            inner = torch.linspace(0, 1, experts + 1, dtype=torch.float64)[1:-1]
            edges = self._difficulties(context.prompts.text).quantile(inner)
        self.register_buffer("edges", edges)
        self.code_logits = nn.Parameter(starting_logits(context, self.options.noise, self.options.spread))

    def forward(
        self,
        prompts: PromptBatch,
        *,
        step: int,
        generator: torch.Generator,
        timesteps: Int[Tensor, "batch"] | None = None,
    ) -> Routing:
        return gate_by_codes(self.context, self.code_logits, self.scores(prompts), step=step, generator=generator)

    def scores(
        self, prompts: PromptBatch, timesteps: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch experts"]:
        """Minus the difficulty by which a prompt misses each expert's quantile, 0 within it."""
        difficulty = self._difficulties(prompts.text).to(self.edges.device)[:, None]
        low, high = pad(self.edges, (1, 0), value=-torch.inf), pad(self.edges, (0, 1), value=torch.inf)
        return -((low - difficulty).relu() + (difficulty - high).relu())

    def codes(self) -> Float[Tensor, "experts gates"]:
        return self.context.relaxation.soft(self.code_logits.double())

    def _difficulties(self, texts: Sequence[str]) -> Float[Tensor, "batch"]:
        return torch.tensor([difficulty(t, self.options.written) + hashed(t) for t in texts], dtype=torch.float64)


def difficulty(text: str, written: int) -> int:
    """The number of content words, words that the picture should spell counting `written` times.

    Spelled words are those in quotation marks and those in capitals. A content word has at least three letters.
    """
    text = unicodedata.normalize("NFKC", text)
    words = _WORD.findall(_QUOTED.sub(" ", text))
    capitals = [len(word) > 1 and word.isupper() for word in words]
    content = [_CONTENT.fullmatch(word) is not None for word in words]
    quoted = sum(len(_WORD.findall(quote)) for quote in _QUOTED.findall(text))
    plain = sum(has and not spelled for has, spelled in zip(content, capitals, strict=True))
    return plain + written * (sum(capitals) + quoted)
