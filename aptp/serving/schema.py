"""What goes over the wire: the request of OpenAI's images endpoint with what is ours beside it, and its answer."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aptp.core.errors import unknown
from aptp.serving.errors import Refusal
from aptp.serving.limits import Limits

LARGEST_SEED = 2**53 - 1
"""The largest number of which every JSON parser keeps all digits."""


class ImageRequest(BaseModel):
    """The body of `POST /v1/images/generations`. What is null or left out is the server's to choose."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    prompt: str = Field(description="what the picture should show")
    model: str | None = Field(None, description="the one that GET /v1/models names")
    n: int | None = Field(None, ge=1, description="pictures, with seeds that count on; by default 1")
    size: str | None = Field(None, description="the model's own as WIDTHxHEIGHT, or auto")
    response_format: Literal["b64_json"] | None = Field(None, description="pictures stand in the answer")
    output_format: Literal["png"] | None = None
    quality: str | None = Field(None, description="has no effect")
    style: str | None = Field(None, description="has no effect")
    user: str | None = Field(None, description="has no effect, and is not kept")
    negative_prompt: str | None = Field(None, description="what the picture should not show; has no part in routing")
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED, description="of the first picture; by default a random one")
    steps: int | None = Field(None, ge=1, description="sampling steps")
    guidance: float | None = Field(None, ge=0, description="scale of classifier-free guidance")


class Picture(BaseModel):
    """One picture of an answer: a PNG in base 64, its expert (−1 is the dense model), its cost as a fraction of dense,
    its seed, and whether the safety checker found it unfit to be shown; null where the model has none.
    """

    b64_json: str
    expert: int
    cost: float
    seed: int
    nsfw_content_detected: bool | None


class ImageAnswer(BaseModel):
    """The answer of `POST /v1/images/generations`, and the revision of the bundle that drew it."""

    created: int
    data: list[Picture]
    size: str
    output_format: Literal["png"] = "png"
    model: str
    revision: str


@dataclass(frozen=True)
class Order:
    """A request with all that it left open filled in: a picture for each of `seeds`."""

    prompt: str
    negative_prompt: str | None
    seeds: tuple[int, ...]
    steps: int
    guidance: float | None


def read(body: bytes, limits: Limits, *, model: str, size: str) -> Order:
    """The order that a request's body means, to a server of the one model that draws pictures of this size.

    Raises:
        Refusal: for the first thing that is wrong with it.
    """
    try:
        asked = ImageRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error
    if asked.model not in (None, model):
        raise Refusal(
            404,
            f"there is no model {_short(asked.model)}; this server has {model!r}.",
            "model_not_found",
            param="model",
        )
    if asked.size not in (None, "auto", size):
        raise _wrong("size", f"size is {_short(asked.size)}; this model draws {size!r}.")
    _check_text("prompt", asked.prompt, limits)
    if asked.negative_prompt is not None:
        _check_text("negative_prompt", asked.negative_prompt, limits)
    bounds = {"n": limits.max_count, "steps": limits.max_steps, "guidance": limits.max_guidance}
    for name, most in bounds.items():
        if (given := getattr(asked, name)) is not None and given > most:
            raise _wrong(name, f"{name} is {_short(given)}; {most} is the most that this server takes.")
    first = asked.seed if asked.seed is not None else secrets.randbelow(2**31)
    return Order(
        asked.prompt,
        asked.negative_prompt,
        tuple(range(first, first + (asked.n or 1))),
        limits.steps if asked.steps is None else asked.steps,
        limits.guidance if asked.guidance is None else asked.guidance,
    )


def _check_text(name: str, text: str, limits: Limits) -> None:
    if len(text) > limits.max_prompt:
        raise _wrong(name, f"{name} has {len(text):,} characters; this server takes up to {limits.max_prompt:,}.")
    if name == "prompt" and not text.strip():
        raise _wrong(name, "prompt is empty; write what the picture should show.")


def _refusal(error: ValidationError) -> Refusal:
    """One sentence for the first thing that is wrong with a body."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a misspelt name is also a missing one
    name = _cut(str(first["loc"][0])) if first["loc"] else None
    what = f"{first['msg'][0].lower()}{first['msg'][1:]}"
    if name is None:
        return Refusal(400, f"the body cannot be read: {what}.", "invalid_json")
    if first["type"] == "extra_forbidden":
        return _wrong(name, str(unknown("parameter", name, ImageRequest.model_fields)))
    if first["type"] == "missing":
        return _wrong(name, f"the request needs {name!r}.")
    return _wrong(name, f"{name} is {_short(first['input'])}: {what}.")


def _wrong(name: str, message: str) -> Refusal:
    return Refusal(400, message, "invalid_value", param=name)


def _short(value: object) -> str:
    """A value as a sentence may quote it."""
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
