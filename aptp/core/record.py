"""The record of a run: everything that was asked, measured and spent, as JSON. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from aptp.core.errors import RequestError, gist
from aptp.core.files import write_text


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StepEvent(_Part):
    """The end of a training step: what observers are told."""

    stage: str
    step: int
    total: int
    values: dict[str, float]


class Budget(_Part):
    """Costs as fractions of dense: asked for, and of the codes as they are served."""

    estimator: str
    unit: str
    dense: float
    target: float
    floor: float
    uncalibrated: float | None = None
    expected: float | None = None
    """On training prompts, after calibration."""
    measured: float | None = None
    """On held-out prompts."""
    error: float | None = None
    """Largest difference of an expert's fraction from its `measured` one, as a share of that."""
    sample_size: int
    text_tokens: int


class Expert(_Part):
    """One expert: what it costs, who it serves, what it keeps."""

    index: int
    fraction: float
    cost: float
    measured: float | None = None
    """The fraction itself, timed, where the budget is an estimate of time."""
    parameters: int
    training_load: float
    validation_load: float | None = None
    kept: dict[str, list[int]]
    """`path:kind` of a site → [units kept, units]."""


class Result(_Part):
    """One row of the table: a method's figures over the same prompts and seeds."""

    name: str
    fraction: float
    """Expected cost over the evaluation prompts, as a fraction of dense."""
    macs: float
    parameters: float
    training_steps: int
    """Of recovery."""
    search_steps: int | None = None
    """Of the search before it: 0 where a method has none, `None` where nobody wrote it down."""
    training_seconds: float
    latency_ms: float | None = None
    peak_memory_mb: float | None = None
    disk_mb: float | None = None
    """Weights of all its denoisers in files (10⁶ bytes), those that experts share once."""
    teacher_error: float | None = None
    """Mean squared error of the denoiser's output against the dense one on validation latents."""
    metrics: dict[str, float] = Field(default_factory=dict)
    samples: str | None = None
    """Folder of its pictures, relative to the run."""
    sampling_steps: int | None = None
    """Of the dense model, where they are not the run's own; its cost is then that of a picture."""


class Record(_Part):
    """What a run leaves beside its artifacts (`record.json`)."""

    format: int = 1
    status: Literal["running", "done", "failed"] = "running"
    error: str | None = None
    started: str
    finished: str | None = None
    config: dict[str, Any]
    model: str | None = None
    """Fingerprint of the dense pipeline's weights."""
    costs: str | None = None
    """Fingerprint of the cost model: what is measured once must not change on the way."""
    versions: dict[str, str]
    hardware: dict[str, Any]
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall time of each stage."""
    data: dict[str, Any] = Field(default_factory=dict)
    """A fingerprint of the whole set; for `training` and `validation` the numbers of pictures and captions used and the
    SHA-256 of the file that lists them; some of what was left out and why, and how many there were."""
    budget: Budget | None = None
    experts: list[Expert] = Field(default_factory=list)
    routing: dict[str, Any] = Field(default_factory=dict)
    """On held-out prompts: `perplexity`, `perplexity_without_bias`, `load`, `mean_cost`,
    `kinds`: {kind: {expert: count}}, `mean_cost_of_kind`: {kind: fraction}, `examples`: {expert: [prompts]},
    `nmi` of expert and kind, where several kinds and experts are known;
    `oracle`: {`mean_cost`, `teacher_error` of the routes, `least_teacher_error` of any at that cost};
    `cross`: {`teacher_error`: [[error of expert i on the prompts of cluster j]], `prompts`: [of cluster j]}, None for
    the errors of an empty cluster; `hardness`: {`spearman`, `low`, `high`, `prompts`, `clusters`}, the rank correlation
    of the hurt of pruning and the cost of the expert with its 95% interval, where prompts' experts differ in cost."""
    results: list[Result] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)

    def save(self, path: str | Path) -> None:
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read what `save` wrote. Raises `RequestError` for anything else."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequestError(f"{str(path)!r} is not the record of a run: {gist(error)}.") from error
