"""What the stages of a run hand one another."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aptp.api import pipeline_denoiser, search_space
from aptp.bundle import MODEL
from aptp.config import Choice, RunConfig, TrainingOptions
from aptp.core import distributed
from aptp.core.architecture import Architecture, SearchSpace
from aptp.core.budget import CostModel
from aptp.core.child import Start
from aptp.core.data import CaptionedDataset
from aptp.core.denoiser import Denoiser
from aptp.core.encoder import PromptEncoder
from aptp.core.errors import RequestError
from aptp.core.files import default_cache, write_text
from aptp.core.progress import Progress
from aptp.core.pruner import ScoringPruner, StaticPruner
from aptp.core.record import Record, StepEvent
from aptp.core.relaxation import Relaxation
from aptp.core.router import PromptBatch, Router, RouterContext, scores_of
from aptp.harness.data import Need, Pictures, Preparer
from aptp.harness.exam import Exam
from aptp.harness.processes import check_shares
from aptp.harness.pruning import pruner_context
from aptp.harness.selection import Chosen, check_counts, choose
from aptp.harness.start import start_of_search
from aptp.harness.trackers import Trackers
from aptp.harness.training import Distiller, Noiser, generator_for, train
from aptp.host import Host
from aptp.models import device_of, load_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


KEEP_SECONDS = 15.0
"""Time between two savings of the record while a stage trains."""
SHARED = ("denoiser", "space", "encoder", "preparer", "text_tokens", "exam", "trackers", "_costs")
"""What depends on models, data, granularity and budget alone, and is made once for all methods of a run."""


@dataclass
class Workspace:
    """The models, data and strategies of one run: cheap things are checked at once, the rest comes when asked."""

    config: RunConfig
    out: Path
    host: Host
    progress: Progress
    record: Record
    device: torch.device
    pipeline: DiffusionPipeline
    dataset: CaptionedDataset
    chosen: Chosen
    elsewhere: Start | None = None
    """Starts what can be done apart; without it, all is done in this process."""
    count_time: Callable[[], None] | None = None
    """Adds to the record what the stage under way has taken so far."""
    train: Pictures = field(init=False)
    validation: Pictures = field(init=False)
    architectures: list[Architecture] = field(init=False)
    _kept: float = field(default=-math.inf, init=False)

    @classmethod
    def open(cls, config: RunConfig, out: Path, host: Host, progress: Progress, record: Record) -> Workspace:
        """`load`, and see that the whole request can be carried out. Raises `RequestError` where it cannot."""
        check_shares(config)
        own = [config.pruner] if config.pruner else []
        for kind, choices in {"metric": config.metrics, "pruner": [*config.compare, *own]}.items():
            for choice in choices:
                make(host, kind, choice)
        work = cls.load(config, out, host, progress, record)
        work.check_scheduler()
        if work.pruner is None:
            work.cost_model.check(config.budget.target)
        statics = [make(host, "pruner", choice) for choice in [config.pruner, *config.compare] if choice]
        for pruner in [*statics, *([work.start] if work.start and work.searches else [])]:
            pruner.check(pruner_context(work))
        router, balancer = work.bare_router(), host.target("balancer", config.balancer.name)
        if balancer.by_loss and not router.learns_routes:
            raise RequestError(
                f"balancer {config.balancer.name!r} works by a loss, but router {config.router.name!r} learns no "
                "routes for it to move; choose sinkhorn, unbalanced or none."
            )
        return work

    @classmethod
    def load(cls, config: RunConfig, out: Path, host: Host, progress: Progress, record: Record) -> Workspace:
        """Load the model and look at the data: all that a part of a run needs whose request was checked before."""
        dataset = make(host, "dataset", config.data)
        chosen = choose(dataset, config.prepare, config.seed)
        check_counts(config, chosen.train, chosen.validation)
        device = device_of(config.device)
        pipeline = load_pipeline(config.model, device)
        return cls(config, out, host, progress, record, device, pipeline, dataset, chosen)

    def check_scheduler(self) -> None:
        """Raise `RequestError` for a scheduler with which no training example can be made."""
        generator = generator_for("scheduler")
        try:
            self.noiser(torch.zeros(1, self.dense.config.in_channels, 1, 1), {}, generator)
        except (RequestError, AttributeError) as error:
            raise RequestError(
                f"model {self.config.model!r} cannot be trained with its {type(self.pipeline.scheduler).__name__}: "
                f"{str(error).rstrip('.')}; name another in its model_index.json."
            ) from error

    def beside(self, config: RunConfig, out: Path) -> Workspace:
        """A run of another method over the same models, data, granularity and budget."""
        file = out / "record.json"
        record = (
            Record.load(file).model_copy(update={"warnings": []})
            if file.exists()
            else self.record.model_copy(
                update={"config": config.model_dump(mode="json"), "seconds": {}, "results": [], "warnings": []}
            )
        )
        other = dataclasses.replace(self, config=config, out=out, record=record)
        other.train, other.validation = self.train, self.validation
        other.__dict__.update({name: getattr(self, name) for name in SHARED})
        if distributed.is_main():
            write_text(out / "config.yaml", config.to_yaml())
        return other

    @property
    def sliced(self) -> bool:
        """Whether the experts and the router are all on disk: nothing that was decided before is decided again."""
        return self.path("router/router.json").exists()

    def path(self, relative: str) -> Path:
        """A place in the run directory."""
        return self.out / relative

    @cached_property
    def denoiser(self) -> Denoiser:
        """The family of the model."""
        try:
            return pipeline_denoiser(self.pipeline, self.host)
        except RequestError as error:
            raise RequestError(f"model {self.config.model!r} cannot be pruned: {error}") from error

    @property
    def dense(self) -> nn.Module:
        """The dense denoiser."""
        return getattr(self.pipeline, self.denoiser.component)

    @cached_property
    def space(self) -> SearchSpace:
        choice = self.config.granularity
        return search_space(self.dense, choice.name, host=self.host, **choice.options)

    @property
    def sample_size(self) -> int:
        """Height and width of the latents."""
        return self.denoiser.sample_size(self.dense)

    @cached_property
    def text_tokens(self) -> int:
        """Length of an encoded prompt."""
        return int(self.preparer.text([""], "empty").whole()["encoder_hidden_states"].shape[1])

    @property
    def example_inputs(self) -> dict[str, Tensor]:
        """What the dense denoiser is called with for one picture, at the size that is served."""
        return self.denoiser.example_inputs(self.dense, self.sample_size, self.text_tokens)

    @cached_property
    def _costs(self) -> dict[str, CostModel]:
        return {}

    def cost_by(self, estimator: str, **options) -> CostModel:
        """A cost model of the dense denoiser at the size that is served, profiled when it is first asked for."""
        key = f"{estimator} {options}"
        if key not in self._costs:
            budget = self.host.create("budget", estimator, options)
            self._costs[key] = budget.profile(self.denoiser, self.dense, self.space, self.example_inputs)
        return self._costs[key]

    @cached_property
    def cost_model(self) -> CostModel:
        """The cost model of the budget."""
        options = self.config.budget.options
        return self.cost_by(self.config.budget.name, **options)

    @cached_property
    def pruner(self) -> StaticPruner | None:
        """The static pruner that takes the search's place, if the run has one."""
        return make(self.host, "pruner", self.config.pruner) if self.config.pruner else None

    @cached_property
    def start(self) -> ScoringPruner | None:
        """The static pruner from whose scores a search starts."""
        if self.config.search.start is None:
            return None
        pruner = make(self.host, "pruner", self.config.search.start)
        if not isinstance(pruner, ScoringPruner):
            raise RequestError(
                f"search.start names pruner {self.config.search.start.name!r}, which scores no gates; choose one that "
                "does, such as taylor or magnitude, or null."
            )
        return pruner

    @property
    def searches(self) -> bool:
        """Whether the search stage makes its codes, rather than a static pruner."""
        return self.pruner is None or self.pruner.searches

    @property
    def learns(self) -> bool:
        """Whether that search trains anything."""
        return self.searches and self.router.learns

    @cached_property
    def encoder(self) -> PromptEncoder:
        """What the router reads prompts with."""
        return make(self.host, "encoder", self.config.encoder).to(self.device)

    @cached_property
    def preparer(self) -> Preparer:
        cache = Path(self.config.prepare.cache) if self.config.prepare.cache else default_cache()
        return Preparer(self.pipeline, self.denoiser, self.encoder, cache, self.progress)

    def need(self, source: str) -> Need:
        """What preparing the data set whose fingerprint is `source` will encode, and the disk it takes."""
        adapts = self.config.adapt.steps > 0 and not self.path(MODEL).is_dir()
        flips = self.config.prepare.flips
        return self.preparer.need(self.chosen.train, self.chosen.validation, source, flips=flips, new_text=adapts)

    @cached_property
    def noiser(self) -> Noiser:
        return Noiser(self.denoiser, self.pipeline.scheduler, self.device)

    @cached_property
    def distiller(self) -> Distiller:
        return Distiller(self.denoiser, self.dense, self.config.distill, self.config.precision)

    @cached_property
    def router(self) -> Router:
        """The router, set up with the training prompts."""
        router = make(self.host, "router", self.config.router)
        router.setup(self.router_context)
        return router.to(self.device)

    @cached_property
    def router_context(self) -> RouterContext:
        return self.context_for(self.train.prompts())

    def bare_router(self) -> Router:
        """The router set up without prompts, as one that is loaded to serve."""
        router = make(self.host, "router", self.config.router)
        router.setup(self.context_for(PromptBatch([], self.preparer.embeds([""], "empty")[:0])))
        return router

    def scores(self, pictures: Pictures) -> Float[Tensor, "pictures experts"]:
        """The router's scores of every picture's caption, on the CPU."""
        return scores_of(self.router, pictures.prompts(), self.device)

    def context_for(self, prompts: PromptBatch) -> RouterContext:
        """What a router is set up with for these training prompts."""
        return RouterContext(
            self.space,
            self.config.experts,
            make(self.host, "balancer", self.config.balancer),
            self.cost_model,
            Relaxation(self.space, self.config.relaxation),
            prompts,
            self.config.search.steps,
            self.config.seed,
            start_of_search(self) if prompts.text and self.searches else None,
        )

    @cached_property
    def exam(self) -> Exam:
        """The held-out pictures on which experts are compared with the dense model, with its answers."""
        return Exam.draw(self)

    def forget_model(self) -> None:
        """Drop what was derived from the weights of a pipeline that has been replaced."""
        for name in ("preparer", "noiser", "distiller", "exam"):
            self.__dict__.pop(name, None)

    def fit(
        self,
        stage: str,
        task: str,
        module: nn.Module,
        options: TrainingOptions,
        learn: Callable[[int], dict[str, Tensor]],
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """Train a module as a whole stage, with its checkpoint, log, observers and a progress bar called `task`."""
        with self.progress.task(task, options.steps) as advance:

            def observe(step: int, values: dict[str, float]) -> None:
                self.step_ended(stage, step, options.steps, values)
                cost = f", cost {values['cost']:.2f} of dense" if "cost" in values else ""
                advance(note=f"loss {values['loss']:.3f}{cost}")

            train(
                module=module,
                options=options,
                steps=options.steps,
                checkpoint=self.path(f"checkpoints/{stage}.safetensors"),
                log=self.path(f"logs/{stage}.jsonl"),
                learn=learn,
                observe=observe,
                warn=self.warn,
                rates=rates,
            )

    def step_ended(self, stage: str, step: int, total: int, values: dict[str, float]) -> None:
        """Tell observers, and trackers; the main process's work."""
        self.host.hook.aptp_step_end(step=StepEvent(stage=stage, step=step, total=total, values=values))
        if self.trackers:
            self.trackers.log(f"{self.method}/{stage}", values)
        if self.count_time and time.monotonic() > self._kept + KEEP_SECONDS:
            self.count_time()
            self.keep()

    @property
    def method(self) -> str:
        """What the run's method is called in tables."""
        config = self.config
        return config.pruner.name if config.pruner else f"{config.router.name}+{config.balancer.name}"

    @cached_property
    def trackers(self) -> Trackers | None:
        """Where each step's figures go beside the logs, if the run asks for it."""
        return Trackers(self.config, self.out) if self.config.trackers and distributed.is_main() else None

    def keep(self) -> None:
        """Save the record; the main process's work."""
        self._kept = time.monotonic()
        if distributed.is_main():
            self.record.save(self.path("record.json"))

    def warn(self, text: str) -> None:
        """Say it and keep it in the record."""
        self.progress.say(f"warning: {text}")
        self.record.warnings.append(text)


def make(host: Host, kind: str, choice: Choice):
    """A strategy from its configured choice."""
    return host.create(kind, choice.name, choice.options)
