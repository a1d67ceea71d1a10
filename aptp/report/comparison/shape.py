"""What a comparison relies on in the parts of a record that have no type of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError

from aptp.core.errors import RequestError
from aptp.core.record import Record


class _Named(BaseModel):
    name: str


class _Data(BaseModel):
    name: str | None = None


class _Budget(BaseModel):
    target: float | None = None


class _Evaluate(BaseModel):
    steps: int | None = None


class _Config(BaseModel):
    seed: int = 0
    model: str | None = None
    data: _Data | str | None = None
    budget: _Budget | str | None = None
    evaluate: _Evaluate = _Evaluate()
    search: dict[str, Any] = {}
    recover: dict[str, Any] = {}
    adapt: dict[str, Any] = {}
    compare: list[_Named | str] | None = None


class _Hardness(BaseModel):
    spearman: float
    low: float
    high: float
    prompts: int
    clusters: int


class _Cross(BaseModel):
    teacher_error: list[list[float | None]]


def _known(value: Any) -> Any:
    """An empty table is one that was not made."""
    return None if value == {} else value


class _Routing(BaseModel):
    perplexity: float | None = None
    perplexity_without_bias: float | None = None
    nmi: float | None = None
    kinds: dict[str, dict[str, float]] = {}
    mean_cost_of_kind: dict[str, float] = {}
    hardness: Annotated[_Hardness | None, BeforeValidator(_known)] = None
    cross: Annotated[_Cross | None, BeforeValidator(_known)] = None


class _Shape(BaseModel):
    config: _Config
    routing: _Routing


def check_shape(record: Record, file: Path) -> None:
    """Refuse a record whose configuration or routing is not what a comparison reads.

    Raises:
        RequestError: naming the file and the part.
    """
    try:
        shape = _Shape.model_validate({"config": record.config, "routing": record.routing})
    except ValidationError as error:
        first = error.errors()[0]
        part = ".".join(map(str, first["loc"]))
        raise RequestError(f"{str(file)!r} is not the record of a run: {part}: {first['msg']}.") from error
    count = len(record.experts)
    if sorted(expert.index for expert in record.experts) != list(range(count)):
        raise RequestError(f"{str(file)!r} is not the record of a run: experts: they are not numbered from 0.")
    if (cross := shape.routing.cross) and [len(row) for row in cross.teacher_error] != [count] * count:
        raise RequestError(
            f"{str(file)!r} is not the record of a run: routing.cross.teacher_error: {count} rows of {count} are right."
        )
