"""CLIP score: how well a picture fits its prompt."""

from __future__ import annotations

from torchmetrics.aggregation import MeanMetric

from aptp.core.errors import RequestError
from aptp.core.metric import GenerationBatch, Metric
from aptp.plugins.options import FeatureOptions

from ._features import load_features


class ClipScore(Metric):
    """The metric `clip-score` (Hessel et al., 2021, as text-to-image papers use it): the mean of 100·cos.

    Figures `clip_score_<features>` of the generated pictures and `clip_score_<features>_real` of the real pictures of
    the same prompts. The mean is torchmetrics'; its own `CLIPScore` would embed every picture and prompt a second time
    and drops the end token of over-long prompts, from which CLIP reads the embedding.
    """

    Options = FeatureOptions

    def __init__(self, options: FeatureOptions) -> None:
        self._features = load_features(options.features)
        self._generated, self._real = MeanMetric(), MeanMetric()

    def update(self, batch: GenerationBatch) -> None:
        embedded = self._features.embed(batch)
        self._generated.update(100 * (embedded.images * embedded.prompts).sum(dim=-1))
        self._real.update(100 * (embedded.references * embedded.prompts).sum(dim=-1))

    def compute(self) -> dict[str, float]:
        name = f"clip_score_{self._features.label}"
        if not self._generated.update_called:
            raise RequestError(f"{name} was given 0 pictures; evaluate at least 1.")
        return {name: float(self._generated.compute()), f"{name}_real": float(self._real.compute())}
