"""Options of the core's own mechanisms; imports no torch, so that a bad value is refused at once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Base of every options model: unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RelaxationOptions(Options):
    """How logits become gates. The paper's own: offset 3, temperature 0.4, Gumbel noise."""

    offset: float = Field(1.5, description="added to every width logit; the larger, the longer gates stay open")
    depth_offset: float = Field(3.0, description="added to the log-odds of every depth gate")
    temperature: float = Field(0.5, gt=0, description="of the sigmoid")
    noise: Literal["logistic", "gumbel"] = Field(
        "logistic", description="gumbel is skewed: thresholded codes come out smaller than trained"
    )
    anneal: bool = Field(True, description="let the noise fall linearly to none over the search (the paper's own: off)")
    hard: bool = Field(True, description="0/1 gates with straight-through gradients in training")
