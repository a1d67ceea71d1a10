"""Prompts to experts: what a bundle alone can say, without the models that draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aptp.bundle import Bundle
from aptp.core.errors import RequestError
from aptp.core.router import PromptBatch, margins, scores_of, serve

LONGEST_PROMPT = 10_000
"""Characters; a prompt this long is a mistake, not a prompt."""
DENSE = -1
"""What stands for the dense model among the numbers of experts."""


@dataclass(frozen=True)
class Route:
    """Where a prompt goes: its expert or `DENSE`, the cost of that as a fraction of dense, its lead over the next."""

    prompt: str
    expert: int
    cost: float
    margin: float


def read(bundle: Bundle, prompts: Sequence[str]) -> PromptBatch:
    """Prompts as the router sees them. Raises `RequestError` for ones that cannot be served, or a wrong encoder."""
    check_prompts(prompts)
    embeds = bundle.encoder.encode(prompts)
    if embeds.shape[1] != bundle.embed:
        raise RequestError(
            f"the prompt encoder of {str(bundle.folder)!r} gives {embeds.shape[1]} numbers and its router reads "
            f"{bundle.embed}; they do not belong together."
        )
    return PromptBatch(prompts, embeds)


@torch.no_grad()
def route(bundle: Bundle, batch: PromptBatch, fallback_margin: float = 0.0) -> list[Route]:
    """The expert of each prompt, a function of that prompt alone.

    Args:
        fallback_margin: prompts whose lead is under it go to the dense model.

    Raises:
        RequestError: for a margin that none can be under.
    """
    if not fallback_margin >= 0:
        raise RequestError(f"fallback margin {fallback_margin} is no lead; 0 or more is right.")
    scores = scores_of(bundle.router, batch)
    routes = []
    for prompt, expert, lead in zip(
        batch.text, serve(scores, bundle.bias).tolist(), margins(scores, bundle.bias).tolist(), strict=True
    ):
        sure = not lead < fallback_margin
        routes.append(Route(prompt, expert if sure else DENSE, bundle.fractions[expert] if sure else 1.0, lead))
    return routes


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise `RequestError` for prompts that cannot be served."""
    if not prompts:
        raise RequestError("there is no prompt; give at least one.")
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str):
            raise RequestError(f"prompt {number} is a {type(prompt).__name__}; a text is right.")
        if not prompt.strip():
            raise RequestError(f"prompt {number} is empty; write what the picture should show.")
        if not is_text(prompt):
            raise RequestError(f"prompt {number} is broken Unicode (half of a surrogate pair); write it anew.")
        if len(prompt) >= LONGEST_PROMPT:
            raise RequestError(
                f"prompt {number} has {len(prompt):,} characters; fewer than {LONGEST_PROMPT:,} are right."
            )


def is_text(prompt: str) -> bool:
    """Whether a string can be encoded: JSON may hold half of a surrogate pair, which no tokenizer takes."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True
