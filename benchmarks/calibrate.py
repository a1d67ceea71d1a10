"""A finished run calibrated to other budgets: what its traffic is said to cost, and what other traffic then costs.

python benchmarks/calibrate.py RUN 0.8 0.7 0.6

The bias is fitted once to the training prompts and once to half of the held-out ones. Its cost is measured on held-out
prompts that it was not fitted to, and its teacher error on the run's exam, which is held out too.
"""

import json
import sys
from pathlib import Path

import torch

from aptp.calibration import calibrate
from aptp.config import RunConfig, read_yaml
from aptp.core.data import Sample
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.core.router import serve
from aptp.harness.workspace import Workspace
from aptp.host import default_host
from aptp.pipeline import load


def main(run: Path, targets: list[float]) -> None:
    host, pipe = default_host(), load(run)
    config = RunConfig.model_validate(read_yaml(run / "config.yaml", "configuration"))
    work = Workspace.open(config, run, host, Quiet(), Record.load(run / "record.json"))
    held_out, source = work.chosen.validation, work.dataset.fingerprint()
    work.validation = work.preparer.pictures(held_out, source, "held-out")
    errors, costs = work.exam.marks(pipe), torch.tensor(pipe.bundle.fractions, dtype=torch.float64)
    scores = pipe.bundle.router.scores(work.validation.prompts())
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0)).tolist()
    half = len(order) // 2
    fits = {
        "training prompts": (texts(work.chosen.train), order),
        "half the held-out": (texts([held_out[i] for i in order[:half]]), order[half:]),
    }
    for target in targets:
        for name, (prompts, others) in fits.items():
            fitted = calibrate(run, str(target), prompts, host)
            route = serve(scores, torch.tensor(fitted.bias, dtype=torch.float64))
            exam = errors.gather(1, route[work.exam.index, None])
            row = {
                "fitted to": name,
                "target": target,
                "expected": fitted.after.cost,
                "load": fitted.after.load,
                "measured on": len(others),
                "measured": float(costs[route[others]].mean()),
                "teacher error, predicted": fitted.after.teacher_error,
                "teacher error, measured": float(exam.mean()),
                "cost on the exam": float(costs[route[work.exam.index]].mean()),
            }
            print(json.dumps(row))


def texts(samples: list[Sample]) -> list[str]:
    return [sample.caption for sample in samples]


if __name__ == "__main__":
    main(Path(sys.argv[1]), [float(text) for text in sys.argv[2:]])
