"""Errors that mean the request was wrong, not the program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """A request that cannot be carried out: one sentence that names the thing, its value, and what would be right."""


def gist(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none; of pydantic's, what it says first of all."""
    from pydantic import ValidationError  # not to print help

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def unknown(what: str, name: str, known: Iterable[str]) -> RequestError:
    """The error for a name that is not in `known`, with its nearest neighbours suggested."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known) or 'none'}."
    return RequestError(f"unknown {what} {name!r}; {hint}")
