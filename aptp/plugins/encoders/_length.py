"""The one length that every text is padded or cut to, so that an embedding does not depend on its batch."""

from __future__ import annotations

from aptp.core.errors import RequestError


def fixed_length(asked: int, allowed: int) -> int:
    """The number of tokens of every text: what is asked, at most what the model allows.

    Raises:
        RequestError: if no word has room beside the two special tokens.
    """
    if asked < 3:
        raise RequestError(f"max_tokens is {asked}; give at least 3: two special tokens and room for a word.")
    return min(asked, allowed)
