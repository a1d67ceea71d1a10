"""How the templates of pages and cards are filled in."""

from __future__ import annotations

import re
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined


def environment(html: bool) -> Environment:
    """Templates by their path in `aptp/report`. HTML escapes every text, Markdown what is piped to `literal`."""
    made = Environment(
        loader=FunctionLoader(lambda path: (files("aptp.report") / path).read_text(encoding="utf-8")),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["literal"] = literal
    return made


def literal(text: object) -> str:
    """A text of which Markdown makes nothing, on one line."""
    plain = " ".join(str(text).splitlines()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`\[|])", r"\\\1", plain)
