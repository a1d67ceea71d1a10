"""For plugin authors: tiny random denoisers, and conformance checks that raise `AssertionError` on what is wrong.

A check takes the strategy (or, where it needs several fresh ones, a function that makes it) and tries it on small
random models on the CPU; nothing is downloaded. For a balancer of your own, say:

    from aptp.testing import check_balancer
    def test_conforms(): check_balancer(MyBalancer(MyBalancer.Options()))
"""

from __future__ import annotations

from aptp.testing.models import (
    FAMILIES,
    MODELS,
    PIXART,
    SD3,
    tiny_cost_model,
    tiny_inputs,
    tiny_pixart,
    tiny_sd3,
    tiny_space,
    tiny_unet,
)
from aptp.testing.pictures import check_dataset, check_metric
from aptp.testing.routing import check_balancer, check_encoder, check_router
from aptp.testing.structure import check_budget, check_denoiser, check_granularity, check_pruner, tiny_pruner_context

__all__ = [
    "FAMILIES",
    "MODELS",
    "PIXART",
    "SD3",
    "check_balancer",
    "check_budget",
    "check_dataset",
    "check_denoiser",
    "check_encoder",
    "check_granularity",
    "check_metric",
    "check_pruner",
    "check_router",
    "tiny_cost_model",
    "tiny_inputs",
    "tiny_pixart",
    "tiny_pruner_context",
    "tiny_sd3",
    "tiny_space",
    "tiny_unet",
]
