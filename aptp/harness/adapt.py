"""Adaptation: the dense model is fine-tuned on the data before it is pruned, as its users would have done."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aptp.bundle import MODEL
from aptp.core import distributed
from aptp.core.data import Sample
from aptp.core.files import settle
from aptp.core.objective import weighted_mse
from aptp.harness.training import (
    autocast,
    batch_index,
    dropped,
    generator_for,
    micro_batches,
    recomputing,
    with_dropout,
)
from aptp.harness.workspace import Workspace
from aptp.models import load_pipeline


def adapt(work: Workspace, samples: Sequence[Sample], source: str) -> None:
    """Train denoiser and text encoders together, save the pipeline in the run, and go on with the saved one."""
    folder = work.path(MODEL)
    if not folder.is_dir():
        _fine_tune(work, samples, source)
        if distributed.is_main():
            partial = folder.with_name(f".{folder.name}.partial")
            work.pipeline.save_pretrained(partial)
            settle(partial)
            partial.rename(folder)
        distributed.wait()
    work.pipeline = load_pipeline(str(folder), work.device)
    work.forget_model()


def _fine_tune(work: Workspace, samples: Sequence[Sample], source: str) -> None:
    config, options = work.config, work.config.adapt
    latents = work.preparer.latents(samples, source, "training", config.prepare.flips)
    samples = latents.samples
    encoders = {n: c for n, c in work.pipeline.components.items() if n.startswith("text_encoder") and c is not None}
    modules = nn.ModuleDict({"denoiser": work.dense, **encoders}).requires_grad_(True)
    dropout = config.recover.caption_dropout

    def learn(step: int) -> dict[str, Tensor]:
        index = batch_index(len(samples), options.batch, step, config.seed, "adapt")
        generator = generator_for(config.seed, "adapt", step)
        lost = dropped(len(index), dropout, generator)
        noised = work.noiser.draw(latents.of(index, generator), generator)
        parts = micro_batches(options)
        mean = torch.zeros((), device=work.device)
        for rows in parts:
            captions = [samples[i].caption for i in index[rows]]
            with autocast(work.device, config.precision):
                text = work.denoiser.encode_text(work.pipeline, captions, work.sample_size)
                nothing = work.denoiser.unconditional(work.pipeline, work.sample_size)
                text = with_dropout(text, nothing, lost[rows])
                example = work.noiser.example(noised, rows, text)
                noisy = example.diffused.noisy
                prediction = work.denoiser.predict(work.dense, noisy, example.timesteps, example.text)
            loss = weighted_mse(prediction.float(), example.diffused.target, example.diffused.weight) / len(parts)
            loss.backward()
            mean += loss.detach()
        return {"loss": mean}

    with recomputing(work.dense, config.checkpointing):
        work.fit("adapt", "adapting the dense model", modules, options, learn)
    modules.requires_grad_(False)
