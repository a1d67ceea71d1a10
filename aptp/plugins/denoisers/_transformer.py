"""The width of diffusers' `BasicTransformerBlock`, which U-Nets and PixArt's transformer share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention

from aptp.core import anatomy
from aptp.core.anatomy import Part


def width_of(path: str, block: BasicTransformerBlock, inside: Sequence[str]) -> Iterator[Part]:
    """Its attentions and its feed-forward, in the order in which it runs them."""
    for name, layer in block.named_children():
        if isinstance(layer, Attention):
            yield anatomy.attention_heads(f"{path}.{name}", layer, inside)
        elif isinstance(layer, FeedForward):
            yield anatomy.feedforward_units(f"{path}.{name}", layer, inside)
