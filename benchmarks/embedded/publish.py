"""Put the last checkpoint's averaged weights into aptp/assets/tiny.

python benchmarks/embedded/publish.py --work DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models import publish_pipeline

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    publish_pipeline(parser.parse_args().work)
