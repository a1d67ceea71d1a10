"""What can be told from a prompt's text alone, without an encoder."""

from __future__ import annotations

import hashlib
import unicodedata


def normalised(text: str) -> str:
    """The text with compatible characters (NFKC), letter case and white space made one."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def hashed(text: str, salt: object = "") -> float:
    """A number in [0, 1) from the SHA-256 hash of the normalised text; another salt gives an unrelated one."""
    digest = hashlib.sha256(f"{salt}/{normalised(text)}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
