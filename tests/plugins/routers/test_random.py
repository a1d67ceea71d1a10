"""The random router: routes by a hash of the text, even and without meaning."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.router import PromptBatch, serve
from aptp.plugins.balancers.sinkhorn import SinkhornBalancer
from aptp.plugins.routers.random import RandomRouter


def batch(texts: list[str]) -> PromptBatch:
    return PromptBatch(texts, torch.randn(len(texts), 5))


def router(context) -> RandomRouter:
    made = RandomRouter(RandomRouter.Options())
    made.setup(context)
    return made


def test_experts_get_even_shares(make_context) -> None:
    prompts = batch([f"prompt {i}" for i in range(3000)])
    load = serve(router(make_context(prompts)).scores(prompts), torch.zeros(3)).bincount(minlength=3)
    assert (load - 1000).abs().max() < 100  # four standard deviations


def test_a_serving_bias_evens_them_out(make_context) -> None:
    prompts = batch([f"prompt {i}" for i in range(50)])
    scores = router(make_context(prompts)).scores(prompts)
    bias = SinkhornBalancer(SinkhornBalancer.Options()).serving_bias(scores)
    load = serve(scores, bias).bincount(minlength=3)
    assert load.max() - load.min() <= 3


@given(text=st.text(min_size=1), others=st.lists(st.text(), max_size=5), seed=st.integers(0, 9))
def test_a_route_is_the_text_s_alone(make_context, text: str, others: list[str], seed: int) -> None:
    one, other = router(make_context(batch(["a"]))), router(make_context(batch(["b", "c"]), seed=seed))
    among = other.scores(batch([*others, f"  {text} "]))
    assert torch.equal(one.scores(batch([text]))[0], among[-1])


def test_no_prompt_has_no_score(make_context) -> None:
    assert router(make_context(batch(["a"]))).scores(batch([])).shape == (0, 3)
