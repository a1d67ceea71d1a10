"""AuraFlow as a denoiser family of aptp. Imports no torch: listing plugins stays fast."""

from __future__ import annotations

from aptp import PluginSpec, hookimpl


@hookimpl
def aptp_denoisers() -> list[PluginSpec]:
    """Register the family `auraflow`."""
    return [PluginSpec("auraflow", "aptp_auraflow.denoiser:AuraFlowDenoiser", "AuraFlowTransformer2DModel")]
