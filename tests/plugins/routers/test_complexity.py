"""The complexity router: what makes a prompt difficult, and that difficulty orders the experts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.router import PromptBatch, serve
from aptp.plugins.routers.complexity import ComplexityRouter, difficulty


def batch(texts: list[str]) -> PromptBatch:
    return PromptBatch(texts, torch.zeros(len(texts), 5))


def router(context, **options: float) -> ComplexityRouter:
    made = ComplexityRouter(ComplexityRouter.Options(**options))
    made.setup(context)
    return made


def route(made: ComplexityRouter, texts: list[str], experts: int = 3) -> list[int]:
    return serve(made.scores(batch(texts)), torch.zeros(experts)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("a star on it", 1),
        ("a red star above a blue ring", 5),
        ("the word STOP", 2 + 4),
        ("a sign that says OK", 3 + 4),
        ('a sign that says "open late"', 3 + 2 * 4),
        ("ein Schild, auf dem „offen“ steht", 5 + 4),
        ("une pancarte « ouvert »", 2 + 4),
        ("赤い星", 3),
        ("「止」の看板", 3 + 4),
        ("빨간 별", 3),
        ("it's a dog's", 1),
    ],
)
def test_difficulty(text: str, expected: int) -> None:
    assert difficulty(text, written=4) == expected


@given(words=st.lists(st.text("abcdefgé", min_size=3, max_size=9), min_size=1), more=st.text("xyz", min_size=3))
def test_a_word_more_is_more_difficult_and_a_written_one_still_more(words: list[str], more: str) -> None:
    text = " ".join(words)
    assert difficulty(f"{text} {more}", 4) == difficulty(text, 4) + 1
    assert difficulty(f"{text} {more.upper()}", 4) == difficulty(f'{text} "{more}"', 4) == difficulty(text, 4) + 4


@given(lengths=st.lists(st.integers(1, 6), min_size=12, max_size=60), experts=st.integers(1, 4))
def test_experts_get_even_shares_in_the_order_of_difficulty(make_context, lengths: list[int], experts: int) -> None:
    texts = [f"{i} " + "word " * length for i, length in enumerate(lengths)]
    made = router(make_context(batch(texts), experts))
    experts_of = torch.tensor(route(made, texts, experts))
    load = experts_of.bincount(minlength=experts)
    assert load.max() - load.min() <= 2
    ranges = [torch.tensor(lengths)[experts_of == expert] for expert in range(experts)]
    assert all(low.max() <= high.min() for low, high in pairwise(ranges))


def test_beyond_the_training_prompts_the_first_and_the_last_serve(make_context) -> None:
    made = router(make_context(batch([f"{'word ' * n} number" for n in range(2, 12)])))
    assert route(made, ["a", "many " * 50, 'the word "exhibition"' * 5]) == [0, 2, 2]


def test_codes_start_in_the_order_of_their_capacity(make_context) -> None:
    context = make_context(batch(["one star", "one red star", "one red star above"]))
    soft = router(context).codes()
    costs = context.cost_model.fraction(soft)
    assert torch.equal(costs, costs.sort().values)


def test_training_prompts_that_are_all_one_are_defined(make_context) -> None:
    made = router(make_context(batch(["a star"] * 6)))
    assert len(set(route(made, ["a star"] * 6))) == 1
