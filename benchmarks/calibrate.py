"""A finished run calibrated to other budgets: what its traffic is said to cost, and what other traffic then costs.

python benchmarks/calibrate.py RUN 0.8 0.7 0.6

The bias is fitted once to the training prompts and once to half of the held-out ones. Its cost is measured on held-out
prompts that it was not fitted to, its teacher error on the run's exam, which is held out too.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import torch

from aptp.calibration import fitted
from aptp.config import RunConfig, read_yaml
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.core.router import PromptBatch, serve
from aptp.harness.data import Pictures
from aptp.harness.workspace import Workspace
from aptp.host import default_host
from aptp.pipeline import load


def main(run: Path, targets: list[float]) -> None:
    pipe = load(run)
    config = RunConfig.model_validate(read_yaml(run / "config.yaml", "configuration"))
    work = Workspace.open(config, run, default_host(), Quiet(), Record.load(run / "record.json"))
    source = work.dataset.fingerprint()
    training = work.preparer.pictures(work.chosen.train, source, "training")
    held_out = work.validation = work.preparer.pictures(work.chosen.validation, source, "held-out")
    errors, costs = work.exam.marks(pipe), torch.tensor(pipe.bundle.fractions, dtype=torch.float64)
    scores = pipe.bundle.router.scores(held_out.prompts())
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    fits = {"training": (*counted(training, torch.arange(len(training))), order)}
    fits["half the held-out"] = (*counted(held_out, first), second)
    for target in targets:
        budget = pipe.bundle.budget.model_copy(update={"target": target})
        for name, (prompts, counts, others) in fits.items():
            calibration = fitted(pipe.bundle, budget, prompts, counts)
            route = serve(scores, torch.tensor(calibration.bias, dtype=torch.float64))
            on_exam = route[work.exam.index]
            row = {
                "target": target,
                "fitted to": name,
                "expected cost": calibration.after.cost,
                "measured cost": float(costs[route[others]].mean()),
                "of prompts": len(others),
                "predicted teacher error": calibration.after.teacher_error,
                "measured teacher error": float(errors.gather(1, on_exam[:, None]).mean()),
                "cost on the exam": float(costs[on_exam].mean()),
                "load": calibration.after.load,
            }
            print(json.dumps(row), flush=True)


def counted(pictures: Pictures, index: torch.Tensor) -> tuple[PromptBatch, list[int]]:
    """The different captions of samples, and how often each comes."""
    counts = Counter(pictures.caption_of[index].tolist())
    places = list(counts)
    return PromptBatch([pictures.captions[i] for i in places], pictures.embeds[places]), list(counts.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]), [float(text) for text in sys.argv[2:]])
