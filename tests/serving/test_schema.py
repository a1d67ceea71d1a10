"""Requests: what clients send is understood, and what cannot be served is refused in one sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aptp.serving.errors import Refusal
from aptp.serving.limits import Limits
from aptp.serving.schema import LARGEST_SEED, Order, read

LIMITS = Limits(max_prompt=40, max_count=3, max_steps=50)


def order(body: bytes | dict[str, Any]) -> Order:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read(raw, LIMITS, model="demo", size="64x64")


def test_a_prompt_is_enough() -> None:
    asked = order({"prompt": "a red star"})
    assert (asked.prompt, asked.negative_prompt, len(asked.seeds)) == ("a red star", None, 1)
    assert (asked.steps, asked.guidance) == (LIMITS.steps, LIMITS.guidance)
    assert order({"prompt": "a red star"}).seeds != asked.seeds, "a random seed"


def test_all_that_openai_clients_send_is_understood() -> None:
    sent = {
        "prompt": "a red star", "model": "demo", "n": 2, "size": "64x64", "response_format": "b64_json",
        "output_format": "png", "quality": "auto", "style": "vivid", "user": "someone",
    }  # fmt: skip
    ours = {"seed": 5, "steps": 3, "guidance": 2, "negative_prompt": "words"}
    assert order(sent | ours) == Order("a red star", "words", (5, 6), 3, 2.0)
    assert order(dict.fromkeys(sent | ours) | {"prompt": "x", "seed": 1}) == Order("x", None, (1,), 25, None)
    assert order({"prompt": "x", "size": "auto", "seed": 0}).seeds == (0,)


BAD: dict[str, tuple[bytes | dict[str, Any], str | None, str]] = {
    "nothing": (b"", None, "cannot be read"),
    "no JSON": (b"{'prompt': 1}", None, "invalid JSON"),
    "half": (b'{"prompt": "a', None, "invalid JSON"),
    "a list": (b"[]", None, "should be an object"),
    "no UTF-8": (b'{"prompt": "\xff"}', None, "cannot be read"),
    "half a pair": (b'{"prompt": "\\ud83d"}', None, "invalid JSON"),
    "deep": (b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", None, "cannot be read"),
    "no prompt": ({}, "prompt", "needs 'prompt'"),
    "misspelt": ({"promt": "x"}, "promt", "did you mean 'prompt'"),
    "unknown": ({"prompt": "x", "mask": "y"}, "mask", "unknown parameter 'mask'"),
    "empty": ({"prompt": " \n"}, "prompt", "is empty"),
    "number": ({"prompt": 3}, "prompt", "valid string"),
    "long": ({"prompt": "x" * 41}, "prompt", "has 41 characters; this server takes up to 40"),
    "long negative": ({"prompt": "x", "negative_prompt": "x" * 41}, "negative_prompt", "41 characters"),
    "none": ({"prompt": "x", "n": 0}, "n", "n is 0"),
    "many": ({"prompt": "x", "n": 4}, "n", "n is 4; 3 is the most"),
    "very many": (b'{"prompt": "x", "n": ' + b"9" * 4000 + b"}", "n", "3 is the most"),
    "half a picture": ({"prompt": "x", "n": 1.5}, "n", "valid integer"),
    "true": ({"prompt": "x", "n": True}, "n", "valid integer"),
    "size": ({"prompt": "x", "size": "1024x1024"}, "size", "size is '1024x1024'; this model draws '64x64'"),
    "url": ({"prompt": "x", "response_format": "url"}, "response_format", "'b64_json'"),
    "jpeg": ({"prompt": "x", "output_format": "jpeg"}, "output_format", "'png'"),
    "model": ({"prompt": "x", "model": "dall-e-2"}, "model", "no model 'dall-e-2'; this server has 'demo'"),
    "steps": ({"prompt": "x", "steps": 51}, "steps", "steps is 51; 50 is the most"),
    "no steps": ({"prompt": "x", "steps": 0}, "steps", "greater than or equal to 1"),
    "guidance": ({"prompt": "x", "guidance": 31}, "guidance", "30.0 is the most"),
    "infinite": (b'{"prompt": "x", "guidance": 1e999}', "guidance", "finite number"),
    "not a number": (b'{"prompt": "x", "guidance": NaN}', None, "guidance"),
    "seed": ({"prompt": "x", "seed": LARGEST_SEED + 1}, "seed", "less than or equal"),
    "negative seed": ({"prompt": "x", "seed": -1}, "seed", "greater than or equal to 0"),
    "huge seed": (b'{"prompt": "x", "seed": ' + b"9" * 4000 + b"}", "seed", "seed is"),
    "huge name": ({"prompt": "x", "y" * 30_000: 1}, "y" * 59 + "…", "unknown parameter"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_served_is_refused_in_one_sentence(name: str) -> None:
    body, param, words = BAD[name]
    with pytest.raises(Refusal) as caught:
        order(body)
    refusal = caught.value
    assert words in refusal.message
    assert refusal.message.endswith((".", "?"))
    assert "\n" not in refusal.message
    assert len(refusal.message) < 300
    assert refusal.status == (404 if name == "model" else 400)
    assert name == "not a number" or refusal.param == param


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
    lambda value: json.dumps({"prompt": "x", "n": value}).encode()
))  # fmt: skip
def test_any_body_is_an_order_or_a_refusal(body: bytes) -> None:
    with suppress(Refusal):  # any other error fails
        assert 1 <= len(order(body).seeds) <= LIMITS.max_count


def test_the_longest_prompts_fit_into_a_body() -> None:
    longest = {"prompt": "\U0001f600" * LIMITS.max_prompt, "negative_prompt": "\U0001f600" * LIMITS.max_prompt}
    assert len(json.dumps(longest)) < LIMITS.body
