"""What can be told from a text alone, without an encoder, and how texts are shown."""

from __future__ import annotations

import hashlib
import re
import unicodedata

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys rather than shows, but tabs and ends of lines: escape sequences begin with one, and some turn
the direction of writing. And halves of surrogate pairs, which it cannot be sent."""


def printable(text: str) -> str:
    """The text with its control characters spelt out as JSON does."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def normalised(text: str) -> str:
    """The text with compatible characters (NFKC), letter case and white space made one."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def hashed(text: str, salt: object = "") -> float:
    """A number in [0, 1) from the SHA-256 hash of the normalised text; another salt gives an unrelated one."""
    digest = hashlib.sha256(f"{salt}/{normalised(text)}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
