"""What a monitor says of a run's held-out prompts and of prompts of another kind: python benchmarks/monitor.py RUN"""

import dataclasses
import json
import sys
import time
from itertools import product
from pathlib import Path

from aptp.bundle import load_finished
from aptp.host import default_host
from aptp.monitor import Monitor
from aptp.routing import read, route

SUBJECTS = ("two dogs", "an old man", "a castle", "a steam train", "a queen", "a bowl of fruit", "a city", "a violin")
PLACES = (
    "on a beach",
    "in the rain",
    "at dawn",
    "in a crowded market",
    "under water",
    "in oil, baroque",
    "in the snow",
)
MANNERS = ("a photograph of", "a sketch of")


def main(run: Path) -> None:
    bundle = load_finished(run, default_host())
    held_out = [json.loads(line)["caption"] for line in (run / "data/validation.jsonl").read_text().splitlines()]
    others = [" ".join(words) for words in product(MANNERS, SUBJECTS, PLACES)]
    for name, prompts in {"held-out": held_out, "of another kind": others}.items():
        monitor, batch = Monitor.of(bundle), read(bundle, prompts)
        routes = route(bundle, batch)
        start = time.process_time()
        for place, one in enumerate(routes):
            monitor.observe([one], batch.embeds[place : place + 1])
        each = (time.process_time() - start) / len(routes)
        print(json.dumps({"prompts": name, "ms each": 1000 * each, **dataclasses.asdict(monitor.report())}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
