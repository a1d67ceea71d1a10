"""A router for aptp that looks at nothing but the number of words. Imports no torch: listing plugins stays fast."""

from __future__ import annotations

from aptp import PluginSpec, hookimpl


@hookimpl
def aptp_routers() -> list[PluginSpec]:
    """Register the router `length`."""
    return [PluginSpec("length", "aptp_prompt_length.router:LengthRouter", "short prompts to lean experts, by words")]
