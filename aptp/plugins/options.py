"""The options of the built-in plugins; imports no torch, so that a bad option is refused at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aptp.core.options import Options

_ALIGN = Field(1, ge=1, description="keep widths at multiples of so many channels, or whole")


class NoOptions(Options):
    """A strategy with nothing to set."""


class ContrastiveOptions(Options):
    """The contrastive router. The paper's own: weight 100, both temperatures 0.03, with the diagonal."""

    weight: float = Field(10.0, ge=0, description="of the contrastive loss")
    temperature: float = Field(0.1, gt=0, description="τ of the architectures' similarities")
    prompt_temperature: float | None = Field(
        None, gt=0, description="τ of the prompts' similarities; by default set by perplexity"
    )
    perplexity: float = Field(8.0, gt=1, description="how many neighbours a prompt's similarities should speak of")
    diagonal: bool = Field(False, description="count a prompt's likeness to itself in both softmaxes")
    warmup: float = Field(
        0.2, ge=0, le=1, description="share of the steps that gates each prompt by its own predicted architecture"
    )


class CodesOptions(Options):
    """How learned codes start."""

    noise: float = Field(0.1, ge=0, description="standard deviation of a logit at the start")


class RandomCodesOptions(Options):
    """How the codes are drawn."""

    noise: float = Field(1.0, gt=0, description="standard deviation of a logit")
    spread: float = Field(1.0, ge=0, description="distance of the smallest and the largest expert's mean width logit")


class ComplexityOptions(Options):
    """What makes a prompt difficult, and how the codes start."""

    written: int = Field(4, ge=0, description="content words that a word in quotation marks or capitals counts for")
    noise: float = Field(0.1, ge=0, description="standard deviation of a logit at the start")
    spread: float = Field(0.3, ge=0, description="distance of the first and the last expert's mean width logit")


class SinkhornOptions(Options):
    """Entropic transport."""

    epsilon: float = Field(0.05, gt=0, description="weight of the plan's entropy")
    tolerance: float = Field(1e-6, gt=0, description="largest error of the marginals at which iteration stops")
    iterations: int = Field(1000, gt=0, description="at most this many (the paper's own: 3)")


class EntropyOptions(Options):
    """The entropy penalty."""

    weight: float = Field(1.0, ge=0, description="of the penalty")
    temperature: float = Field(0.05, gt=0, description="of the softmax over scores")


class UnbalancedOptions(Options):
    """Transport whose shares are asked for, not forced."""

    strictness: float = Field(
        0.5, gt=0, description="weight of missing the shares: near 0 it acts as none, large as sinkhorn"
    )
    epsilon: float = Field(0.05, gt=0, description="weight of the plan's entropy")
    tolerance: float = Field(1e-6, gt=0, description="largest change of a share, relatively, at which iteration stops")
    iterations: int = Field(1000, gt=0, description="at most this many")


class LoadOptions(Options):
    """The load-balancing loss."""

    weight: float = Field(1.0, ge=0, description="of the loss (Switch Transformer's own: 0.01)")
    temperature: float = Field(0.05, gt=0, description="of the softmax over scores")


class DepthOptions(Options):
    """Which blocks are depth sites."""

    blocks: Literal["all", "last"] = Field(
        "all", description="every block that can go, or APTP's: the last of each stage"
    )


class WidthOptions(Options):
    """Which widths the sites may have."""

    align: int = _ALIGN


class WidthDepthOptions(Options):
    """Which blocks are depth sites beside all width sites, and which widths those may have."""

    blocks: Literal["all", "last"] = Field(
        "last", description="every block that can go, or APTP's: the last of each stage"
    )
    align: int = _ALIGN


class LatencyOptions(Options):
    """How the table of times is measured."""

    batch: int = Field(8, gt=0, description="inputs of the call that is timed")
    widths: int = Field(6, ge=2, description="at how many widths every part is timed")
    rounds: int = Field(5, gt=0, description="how often each is; the median counts")


class HubOptions(Options):
    """A model in a local folder or on the hub."""

    model: str = Field(description="local folder or hub name")
    revision: str | None = Field(None, description="of the hub repository; its default branch if not given")
    max_tokens: int = Field(64, gt=0, description="every text is padded or cut to this length")


class MiniLMOptions(Options):
    """The packaged sentence encoder."""

    max_tokens: int = Field(64, gt=0, description="every text is padded or cut to this length")


class FeatureOptions(Options):
    """The feature extractor of a metric."""

    features: str = Field("evaluator", description="a CLIPModel folder or hub name; `evaluator` is the embedded one")
