"""The Fréchet distance of CLIP image embeddings. It is not FID, which has Inception's features, nor named so."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from aptp.core.metric import GenerationBatch, Metric
from aptp.plugins.options import FeatureOptions

from ._features import load_features
from ._halves import Halves


class _AsGiven(nn.Identity):
    """What torchmetrics takes for a feature extractor, where the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet_distance(x: Float[Tensor, "n embed"], y: Float[Tensor, "m embed"]) -> float:
    """‖μx − μy‖² + tr(Σx + Σy − 2 (Σx Σy)^½) of the Gaussians fitted to two samples (torchmetrics)."""
    distance = FrechetInceptionDistance(_AsGiven(x.shape[1]), sync_on_compute=False)
    distance.update(x, real=False)
    distance.update(y, real=True)
    return float(distance.compute())


class FrechetDistance(Metric):
    """The metric `frechet`: the Fréchet distance of unit-length CLIP embeddings, between 0 and 4.

    Strongly biased while pictures are not many times the dimensions. Figures `frechet_<features>`, `…_half` and
    `…_floor`: see `aptp.plugins.metrics._halves`.
    """

    Options = FeatureOptions

    def __init__(self, options: FeatureOptions) -> None:
        self._features, self._halves = load_features(options.features), Halves()

    def update(self, batch: GenerationBatch) -> None:
        self._halves.update(self._features.embed(batch))

    def compute(self) -> dict[str, float]:
        return self._halves.figures(f"frechet_{self._features.label}", frechet_distance)
