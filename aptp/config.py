"""The configuration of a run: YAML in, YAML out. Every plugin brings its own options. Imports no torch."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from aptp.core.errors import RequestError, unknown
from aptp.core.options import Options, RelaxationOptions
from aptp.host import Host, option_error


class Choice(BaseModel):
    """A strategy by name, with its options beside the name: `{name: sinkhorn, epsilon: 0.1}`.

    Also written `name`, or `name:argument`, where the argument is the value of the strategy's first option.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            name, _, argument = value.partition(":")
            return {"name": name, "argument": argument} if argument else {"name": name}
        return value

    @property
    def options(self) -> dict[str, Any]:
        """The options given beside the name."""
        return dict(self.__pydantic_extra__ or {})

    def resolved(self, kind: str, host: Host) -> Choice:
        """With every option validated and its default filled in."""
        options = self.options
        if "argument" in options:
            first = next(iter(host.options_model(kind, self.name).model_fields), None)
            if first is None:
                raise RequestError(f"{kind} {self.name!r} takes no argument, but {options['argument']!r} was given.")
            options = {first: options["argument"], **{k: v for k, v in options.items() if k != "argument"}}
        return Choice(name=self.name, **host.options(kind, self.name, options).model_dump(mode="json"))


class BudgetChoice(Choice):
    """A budget estimator and the target, a fraction of the dense cost: `macs:0.66`, or `0.66`."""

    target: float = Field(0.66, gt=0, le=1, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            name, _, target = value.rpartition(":")
            is_number = target.replace(".", "", 1).replace("-", "", 1).replace("e", "", 1).isdigit()
            return {"name": name or "macs", "target": target} if is_number or name else {"name": target}
        return {"name": "macs", "target": value} if isinstance(value, int | float) else value

    def resolved(self, kind: str, host: Host) -> BudgetChoice:
        return BudgetChoice(target=self.target, **super().resolved(kind, host).model_dump())


class Weights(Options):
    """Weights of the distillation objective's terms."""

    denoising: float = Field(1.0, ge=0)
    distillation: float = Field(0.2, ge=0)
    blocks: float = Field(0.2, ge=0)

    @property
    def distill(self) -> bool:
        """Whether any term needs the teacher."""
        return self.distillation > 0 or self.blocks > 0


class RecoverWeights(Weights):
    """The same of recovery, which leans on the teacher."""

    denoising: float = Field(0.01, ge=0)
    distillation: float = Field(0.5, ge=0)
    blocks: float = Field(0.5, ge=0)


class PrepareOptions(Options):
    """What is read and cached."""

    train: int | None = Field(2048, gt=0, description="use at most this many training pictures")
    validation: int | None = Field(512, gt=0, description="use at most this many validation pictures")
    flips: bool = Field(
        False,
        description="train on each picture or its mirror image, as every step draws; not for writing, nor for captions "
        "that tell left from right",
    )
    cache: str | None = Field(
        None,
        description="folder of what runs share: latents, text states, embeddings, the dense model's pictures",
    )


class TrainingOptions(Options):
    """How long and how fast a stage trains, with AdamW."""

    steps: int = Field(0, ge=0)
    batch: int = Field(32, gt=0)
    accumulate: int = Field(
        1, gt=0, description="equal parts in which each process takes its share of a step's pictures, to save memory"
    )
    rate: float = Field(1e-3, gt=0)
    schedule: Literal["linear", "constant"] = "linear"
    warmup: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _parts(self) -> TrainingOptions:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is not divided by accumulate {self.accumulate}; choose a multiple")
        return self


class DistillOptions(Options):
    """How the student is compared with the dense model."""

    block_scale: Literal["variance", "none"] = Field(
        "variance", description="divide the error of each block by its teacher's variance (the paper's own: none)"
    )


class AdaptOptions(TrainingOptions):
    """Fine-tuning of the dense model on the data before it is pruned; the adapted model is then teacher and start."""

    rate: float = Field(3e-4, gt=0)


class SearchOptions(TrainingOptions):
    """The search for codes; weights of the denoiser are frozen."""

    steps: int = Field(80, gt=0)
    rate: float = Field(0.05, gt=0, description="learning rate of AdamW, of a router's other parameters than its codes")
    code_rate: float | None = Field(
        0.4,
        gt=0,
        description="the same of codes, whose logits are parameters themselves (the paper's own: `null`, `rate`)",
    )
    start: Choice | None = Field(
        Choice(name="taylor"),
        description="static pruner whose scores of width gates the codes start from (the paper's own: none)",
    )
    steepness: float = Field(
        2.0, gt=0, description="how firmly they start there; noise has a standard deviation of 1.8 on this scale"
    )
    weights: Weights = Weights()
    resource: float = Field(2.0, ge=0, description="weight of |log(cost / target)|")
    spread: float = Field(0.1, ge=0, description="weight of the codes' difference in cost")


class RecoverOptions(TrainingOptions):
    """Fine-tuning of the experts with the dense teacher."""

    rate: float = Field(5e-4, gt=0)
    warmup: int = Field(5, ge=0)
    steps: int = Field(100, ge=0, description="training steps of each method, or of each expert: see `recover.per`")
    per: Literal["run", "expert"] = Field(
        "run",
        description="whose `recover.steps` are: `run`, shared by all experts, so that they train no longer than one "
        "static model does; `expert`, so many for each one that serves",
    )
    joint: float = Field(
        0.5, ge=0, le=1, description="share of the steps that trains one set of weights under all codes"
    )
    restart: bool = Field(
        False,
        description="begin the schedule of the rate anew where experts train on their own, instead of going on in it",
    )
    share: Literal["load", "error"] = Field(
        "load",
        description="how the other steps are shared: by load, or by load × teacher error on the expert's own prompts",
    )
    rank: int = Field(
        0, ge=0, description="train low-rank changes (LoRA) of this rank, merged at the end; 0 trains all weights"
    )
    start: Literal["slice", "fresh"] = Field(
        "slice",
        description="`slice` takes every weight from the dense model; `fresh` initialises anew what slicing made "
        "smaller, as the published code does, to show what that costs",
    )
    weights: RecoverWeights = RecoverWeights()
    caption_dropout: float = Field(0.1, ge=0, le=1)
    guidance: float = Field(
        0,
        ge=0,
        description="teach what classifier-free guidance of this strength answers: half as many pictures a step, each "
        "with its caption and without; 0 teaches single answers, captions dropped by chance",
    )

    @model_validator(mode="after")
    def _pairs(self) -> RecoverOptions:
        if self.start == "fresh" and self.joint > 0:
            raise ValueError(
                "start fresh and a joint phase, which trains the dense weights, exclude each other; set recover.joint=0"
            )
        if self.share == "error" and self.per == "expert":
            raise ValueError("share error has nothing to share where per is expert; set recover.share=load")
        if self.guidance and self.batch % (2 * self.accumulate):
            raise ValueError(
                f"with guidance, batch {self.batch} is made of pairs; choose a multiple of {2 * self.accumulate}"
            )
        return self


class EvaluateOptions(Options):
    """Generation and evaluation on held-out prompts."""

    prompts: int = Field(120, ge=4)
    steps: int = Field(15, gt=0, description="sampling steps")
    guidance: float = Field(3.0, ge=0)
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of what draws the pictures; teacher error, latency and metrics stay in fp32"
    )
    batch: int = Field(40, gt=0)
    gallery: int = Field(2, ge=0, description="prompts of each kind that every expert draws")
    exam: int = Field(
        128, ge=4, description="held-out pictures on which experts are compared with the dense model, at most"
    )
    dense_steps: list[int] = Field(
        [], description="other numbers of sampling steps with which the dense model is evaluated too, each in a row"
    )

    @field_validator("dense_steps")
    @classmethod
    def _positive(cls, steps: list[int]) -> list[int]:
        if any(count < 1 for count in steps):
            raise ValueError("a number of sampling steps is 1 or more")
        return steps

    @model_validator(mode="after")
    def _others(self) -> EvaluateOptions:
        if self.steps in self.dense_steps:
            raise ValueError(f"dense_steps names {self.steps}, which are the run's own steps")
        return self


class RunConfig(Options):
    """Everything a run depends on; what is not said is defaulted."""

    model: str = Field("tiny", description="`tiny`, a local diffusers folder, or a hub name")
    data: Choice = Choice(name="scenes")
    encoder: Choice = Choice(name="minilm")
    granularity: Choice = Choice(name="width-depth")
    budget: BudgetChoice = BudgetChoice(name="macs")
    router: Choice = Choice(name="contrastive")
    balancer: Choice = Choice(name="sinkhorn")
    pruner: Choice | None = Field(
        None, description="a static pruner instead of a learned router: one expert for all prompts"
    )
    metrics: list[Choice] = Field([Choice(name="cmmd"), Choice(name="frechet"), Choice(name="clip-score")])
    compare: list[Choice] = Field(
        [Choice(name="magnitude")], description="static pruners to run beside, in the same table"
    )
    experts: int = Field(4, gt=0)
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the denoiser's computations in training; weights and losses stay in fp32"
    )
    checkpointing: bool = Field(
        False, description="keep no activations within the denoiser's blocks in training, but compute them again"
    )
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        [], description="where every training step's figures go beside the run's own logs"
    )
    relaxation: RelaxationOptions = RelaxationOptions()
    prepare: PrepareOptions = PrepareOptions()
    distill: DistillOptions = DistillOptions()
    adapt: AdaptOptions = AdaptOptions()
    search: SearchOptions = SearchOptions()
    recover: RecoverOptions = RecoverOptions()
    evaluate: EvaluateOptions = EvaluateOptions()

    def resolved(self, host: Host) -> RunConfig:
        """With the options of every strategy validated and filled in.

        Raises:
            RequestError: for the first bad one, or a package that is missing for what is asked.
        """
        if self.recover.rank and find_spec("peft") is None:
            raise RequestError(
                f"recover.rank {self.recover.rank} needs the package peft, which is not installed; "
                "pip install 'aptp[peft]', or set recover.rank=0."
            )
        for name in self.trackers:
            if find_spec(name) is None:
                raise RequestError(
                    f"trackers names {name!r}, whose package is not installed; pip install 'aptp[{name}]', or drop it."
                )
        one = {
            kind: getattr(self, kind).resolved(kind, host)
            for kind in ("encoder", "granularity", "budget", "router", "balancer")
        }
        return self.model_copy(
            update=one
            | {
                "search": self.search.model_copy(
                    update={"start": self.search.start and self.search.start.resolved("pruner", host)}
                ),
                "data": self.data.resolved("dataset", host),
                "pruner": self.pruner and self.pruner.resolved("pruner", host),
                "metrics": [metric.resolved("metric", host) for metric in self.metrics],
                "compare": [pruner.resolved("pruner", host) for pruner in self.compare],
            }
        )

    def settled(self) -> RunConfig:
        """What the harness carries out: with `pruner`, that one's static run, and no comparison with itself.

        A schedule that there is but one of, or that does not fall, is not begun anew.

        Raises:
            RequestError: if a pruner is to be compared twice; both would lie in one folder.
        """
        names = [pruner.name for pruner in self.compare]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise RequestError(f"compare names the pruner {repeated[0]!r} more than once; once is right.")
        if self.pruner is not None:
            return self.static(self.pruner, [other for other in self.compare if other.name != self.pruner.name])
        recover = self.recover
        if self.experts > 1 and 0 < recover.joint < 1 and recover.schedule == "linear":
            return self
        return self.model_copy(update={"recover": recover.model_copy(update={"restart": False})})

    def static(self, pruner: Choice, compare: Sequence[Choice] = ()) -> RunConfig:
        """The same run with a static pruner in place of the router and the search, and one phase of recovery."""
        return self.model_copy(
            update={
                "pruner": pruner,
                "compare": list(compare),
                "experts": 1,
                "router": Choice(name="constant"),
                "balancer": Choice(name="none"),
                "recover": self.recover.model_copy(update={"restart": False}),
            }
        )

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(
    preset: str | None = None,
    file: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> RunConfig:
    """A configuration from, in rising order of precedence, a preset, a YAML file, flags and `key.path=value` texts.

    Raises:
        RequestError: in one sentence, for an unknown preset, file or key, or a bad value.
    """
    base = read_yaml(file, "configuration") if file else {}
    return layered(preset, [base, flags or {}, *map(assignment, assignments)])


def layered(preset: str | None, layers: Iterable[Mapping[str, Any]]) -> RunConfig:
    """A configuration from a preset and layers over it; each maps keys, dotted or not, to values.

    Raises:
        RequestError: in one sentence, for an unknown preset or key, or a bad value.
    """
    data = _preset(preset) if preset else {}
    for layer in layers:
        for path, value in layer.items():
            _merge(data, _tree(str(path), copy.deepcopy(value)))
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise RequestError(_config_error(error)) from error


def assignment(text: str) -> dict[str, Any]:
    """`key.path=value` as a layer. Raises `RequestError` for another text."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise RequestError(f"--set takes key.path=value, not {text!r}.")
    return {path: scalar(value)}


def presets() -> list[str]:
    """Names of the presets."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in _preset_folder().iterdir() if entry.name.endswith(".yaml")
    )


def _preset_folder() -> Any:
    return files("aptp") / "assets" / "presets"


def _preset(name: str) -> dict[str, Any]:
    if name not in presets():
        raise unknown("preset", name, presets())
    return yaml.safe_load((_preset_folder() / f"{name}.yaml").read_text()) or {}


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """The key: value pairs of a file that is `what`. Raises `RequestError` where there are none to read."""
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise RequestError(f"{what} {str(path)!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{what} {str(path)!r} is not UTF-8 text.") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise RequestError(f"{what} {str(path)!r} is not YAML: {error.problem} in line {line}.") from error
    except yaml.YAMLError as error:
        raise RequestError(f"{what} {str(path)!r} is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(data, dict | None):
        raise RequestError(f"{what} {str(path)!r} holds no key: value pairs.")
    return data or {}


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a repeated key is an error and not, as the library has it, the last one's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def scalar(text: str) -> Any:
    """A value written on the command line, as YAML reads it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _tree(path: str, value: Any) -> dict[str, Any]:
    """`"router.weight", 1` as `{"router": {"weight": 1}}`."""
    *parents, leaf = path.split(".")
    tree = {leaf: value}
    for parent in reversed(parents):
        tree = {parent: tree}
    return tree


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """`over` into `base`, key by key.

    Options of a strategy join the name given before, or the default's; a new name, and a text with an argument, drop
    the options given before.
    """
    for key, value in over.items():
        old = base.get(key)
        kind = RunConfig.model_fields.get(key)
        if kind is not None and kind.annotation not in (Choice, BudgetChoice, Choice | None):
            kind = None
        if kind and isinstance(value, str) and re.fullmatch(r"[a-z][\w-]*", value):
            value = {"name": value}
        if kind and isinstance(value, dict):
            default = kind.default.name if old is None and kind.default else None
            old = kind_dict(kind.annotation, old) if old is not None else ({"name": default} if default else {})
            base[key] = dict(value) if "name" in value and value["name"] != old.get("name") else {**old, **value}
        elif isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value)
        else:
            base[key] = value


def kind_dict(annotation: Any, value: Any) -> dict[str, Any]:
    """A choice in any of its written forms as a mapping."""
    model = BudgetChoice if annotation is BudgetChoice else Choice
    return value if isinstance(value, dict) else model.model_validate(value).model_dump(exclude_unset=True)


def _config_error(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        model: Any = RunConfig
        for part in path[:-1]:
            model = model.model_fields[part].annotation
        return str(unknown("option", ".".join(path), [".".join((*path[:-1], name)) for name in model.model_fields]))
    return option_error("the run", RunConfig, error)
