"""What POT may load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_libraries_that_take_a_gpus_memory_are_left_alone(tmp_path: Path) -> None:
    for name in ("jax", "cupy", "tensorflow"):
        (tmp_path / f"{name}.py").write_text(f"import sys\nsys.stderr.write('{name} is loaded')\nraise ImportError\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POT_BACKEND")}
    code = "import aptp.calibration, aptp.plugins.balancers.sinkhorn"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is loaded" not in run.stderr
