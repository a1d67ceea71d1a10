"""A call taken apart: what belongs to which picture, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.errors import RequestError
from aptp.request import SEEDS, generators_of, pictures_of, seeds_from, whole


def seeds(generators: list[torch.Generator]) -> list[int]:
    return [generator.initial_seed() for generator in generators]


def test_repetitions_of_a_prompt_count_on() -> None:
    assert seeds_from(4, ["a", "b", "a", "a", "b"]) == [4, 4, 5, 6, 5]
    assert seeds(generators_of(4, None, ["a", "b", "a"], 2)) == [4, 5, 4, 5, 6, 7]
    assert seeds(generators_of([4, 9, 0], None, ["a", "b", "a"], 2)) == [4, 5, 9, 10, 0, 1]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 99))
def test_pictures_of_a_prompt_are_those_of_its_repetitions(prompts: list[str], each: int, seed: int) -> None:
    repetitions = [prompt for prompt in prompts for _ in range(each)]
    assert seeds(generators_of(seed, None, prompts, each)) == seeds(generators_of(seed, None, repetitions, 1))


def test_a_single_generator_serves_a_single_picture_as_it_is() -> None:
    generator = torch.Generator().manual_seed(7)
    assert generators_of(0, generator, ["a"], 1) == [generator]


def test_a_single_generator_seeds_several_pictures_and_goes_on() -> None:
    generator = torch.Generator().manual_seed(7)
    first = seeds(generators_of(0, generator, ["a", "b"], 3))
    assert len(set(first)) == 6
    assert first != seeds(generators_of(0, generator, ["a", "b"], 3))
    assert first == seeds(generators_of(0, torch.Generator().manual_seed(7), ["a", "b"], 3))


def test_generators_come_one_a_picture_and_serve_no_other() -> None:
    own = [torch.Generator().manual_seed(seed) for seed in range(4)]
    assert generators_of(0, own, ["a", "b"], 2) == own
    with pytest.raises(RequestError, match="generator has 4 entries; one a picture is right, 2 in all"):
        generators_of(0, own, ["a", "b"], 1)
    with pytest.raises(RequestError, match="stands for two pictures"):
        generators_of(0, [own[0]] * 2, ["a", "b"], 1)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(RequestError, match=r"batch_size is .*; a whole number from 1 is right\."):
        whole("batch_size", value, 1)
    assert whole("batch_size", np.int64(3), 1) == 3


@pytest.mark.parametrize("seed", [-1, SEEDS, [-1], [3, 4], None, 1.5])
def test_bad_seeds_are_refused(seed: int | list[int]) -> None:
    with pytest.raises(RequestError, match="seed"):
        generators_of(seed, None, ["a"], 1)
    assert seeds(generators_of(SEEDS - 1, None, ["a"], 1)) == [SEEDS - 1]


def test_seeds_may_be_numpy_s() -> None:
    assert seeds(generators_of(np.int64(3), None, ["a", "a"], 1)) == [3, 4]
    assert seeds(generators_of(np.array([3, 7]), None, ["a", "b"], 1)) == [3, 7]


def test_every_picture_gets_what_is_its_own() -> None:
    embeds, latents = torch.arange(4.0).reshape(2, 1, 2), torch.arange(4.0).reshape(4, 1)
    generators = [torch.Generator() for _ in range(4)]
    options = {
        "prompt_embeds": embeds,
        "negative_prompt": "blurred",
        "prompt_2": ["x", "y"],
        "latents": latents,
        "prompt_attention_mask": None,
        "timesteps": [3, 2],
        "height": 16,
    }
    call = pictures_of(["a", "b"], 2, generators, options).arguments([3, 0])
    assert "prompt" not in call, "its embeddings are there instead"
    assert torch.equal(call["prompt_embeds"], embeds[[1, 0]])
    assert torch.equal(call["latents"], latents[[3, 0]])
    assert call["negative_prompt"] == ["blurred", "blurred"]
    assert call["prompt_2"] == ["y", "x"]
    assert call["generator"] == [generators[3], generators[0]]
    assert (call["timesteps"], call["height"], call["prompt_attention_mask"]) == ([3, 2], 16, None)
    assert pictures_of(["a", "b"], 2, generators, {}).arguments([1, 2])["prompt"] == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_embeds": torch.zeros(3, 1, 2)}, "prompt_embeds has 3 entries; one a prompt is right, 2 in all"),
        ({"negative_prompt": ["x"]}, "negative_prompt has 1 entries; one a prompt is right, 2"),
        ({"negative_prompt_2": ["x"]}, "negative_prompt_2 has 1"),
        ({"pooled_prompt_embeds": torch.zeros(1, 2)}, "pooled_prompt_embeds has 1"),
        ({"latents": torch.zeros(2, 1)}, "latents has 2 entries; one a picture is right, 4 in all"),
    ],
)
def test_another_number_is_refused(options: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        pictures_of(["a", "b"], 2, [torch.Generator() for _ in range(4)], options)
