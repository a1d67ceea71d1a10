"""Adaptation: the dense model is fine-tuned on the data before it is pruned, as its users would have done."""

from __future__ import annotations

from torch import Tensor, nn

from aptp.core.data import Sample
from aptp.core.objective import weighted_mse
from aptp.harness.training import batch_index, generator_for, with_dropout
from aptp.harness.workspace import Workspace
from aptp.models import load_pipeline
from aptp.pipeline import ADAPTED


def adapt(work: Workspace, samples: list[Sample], source: str) -> None:
    """Train denoiser and text encoders together, save the pipeline in the run, and go on with the saved one."""
    folder = work.path(ADAPTED)
    if not folder.is_dir():
        _fine_tune(work, samples, source)
        partial = folder.with_name(f".{folder.name}.partial")
        work.pipeline.save_pretrained(partial)
        partial.rename(folder)
    work.pipeline = load_pipeline(str(folder), work.device)
    work.forget_model()


def _fine_tune(work: Workspace, samples: list[Sample], source: str) -> None:
    config, options = work.config, work.config.adapt
    samples, latents, picture_of = work.preparer.latents(samples, source, "training")
    encoders = {n: c for n, c in work.pipeline.components.items() if n.startswith("text_encoder") and c is not None}
    modules = nn.ModuleDict({"denoiser": work.dense, **encoders}).requires_grad_(True)
    dropout = config.recover.caption_dropout

    def step_loss(step: int) -> dict[str, Tensor]:
        index = batch_index(len(samples), options.batch, step, config.seed, "adapt")
        generator = generator_for(config.seed, "adapt", step)
        text = work.denoiser.encode_text(work.pipeline, [samples[i].caption for i in index], work.sample_size)
        nothing = work.denoiser.unconditional(work.pipeline, work.sample_size)
        text = with_dropout(text, nothing, dropout, generator)
        example = work.noiser(latents[picture_of[index]], text, generator)
        prediction = work.denoiser.predict(work.dense, example.diffused.noisy, example.timesteps, example.text)
        return {"loss": weighted_mse(prediction, example.diffused.target, example.diffused.weight)}

    work.fit("adapt", "adapting the dense model", modules, options, step_loss)
    modules.requires_grad_(False)
