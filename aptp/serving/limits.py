"""What a server takes on; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]
"""What pictures are drawn in, by torch's names."""


@dataclass(frozen=True)
class Limits:
    """Bounds of requests and queues, and what a request is given where it does not say. Times are in seconds."""

    batch: int = 8
    """Pictures drawn at a time."""
    wait: float = 0.05
    """How long a picture waits, at most, for others to fill its batch while nothing is drawn."""
    queue: int = 128
    """Pictures taken and not yet answered."""
    timeout: float = 120.0
    """From a whole request to its answer, and then until that is fetched."""
    reading: float = 15.0
    """For a request's head to come, from the opening of its connection or the answer before; and then for its body."""
    max_count: int = 4
    """Pictures a request."""
    max_steps: int = 100
    max_guidance: float = 30.0
    max_prompt: int = 2000
    """Characters, of a prompt and of a negative prompt."""
    steps: int = 25
    guidance: float | None = None
    """None is the diffusers pipeline's own."""

    @property
    def connections(self) -> int:
        """That may be open: of all who wait for pictures, as many again who are told to wait, and some that idle."""
        return 2 * self.queue + 512

    @property
    def body(self) -> int:
        """Bytes of a request: two prompts of escaped characters (6 bytes, or 12 for a pair), and the rest."""
        return 24 * self.max_prompt + 4096
