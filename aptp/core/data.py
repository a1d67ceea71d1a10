"""Captioned pictures: what a data set gives to every stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel

if TYPE_CHECKING:
    from PIL import Image

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Sample:
    """One captioned picture, not yet opened. A picture with several captions is several samples.

    `id` names the sample within its data set and is stable between runs. `kind` is an optional label kept for analysis
    (heat maps, difficulty); no stage trains on it.
    """

    id: str
    caption: str
    open: Callable[[], Image.Image]
    """Decode the picture as RGB; raises `OSError` for a picture that cannot be read.

    One with an `errno` is no fault of the picture, which is left out of this run alone if it may not be read
    (`PermissionError`); any other stops the run.
    """
    kind: str | None = None
    picture: str | None = None
    """The name of the picture where several samples show it, so that it is encoded once; `id` if not given."""
    content: str | None = None
    """What the picture is made from (a hash of its file, the seed of its drawing), the same in every set that holds it.

    What was encoded is found by it, whatever else changes in the set; by the set's fingerprint and the picture's name
    if not given.
    """

    @property
    def picture_id(self) -> str:
        """The name of the picture."""
        return self.id if self.picture is None else self.picture


class CaptionedDataset(ABC):
    """A source of captioned pictures with a training and a validation split.

    What was left out (a missing file, an empty caption) may be listed in an attribute `skipped`: names and reasons.
    """

    Options: ClassVar[type[BaseModel]]
    """The options model of this data set; its instances are the constructor's only argument."""

    @abstractmethod
    def __init__(self, options: BaseModel) -> None: ...

    @abstractmethod
    def samples(self, split: Split) -> Sequence[Sample]:
        """The samples of a split in a fixed order. Raises `RequestError` if there are none."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the content (options that matter, file sizes and names, …): the key of every cache made from it."""
