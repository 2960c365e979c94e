"""The spatial Frechet distance (Nash et al. 2021, arXiv 2103.03841), as ADM measures it."""

from ditprune.metrics.base import FeatureMetric
from ditprune.metrics.features import Features
from ditprune.metrics.frechet import frechet_distance


class SpatialFrechetDistance(FeatureMetric):
    """sFID: the Frechet distance in features that still know where in the image they are.

    Only extractors with spatial features have it: `InceptionV3`, whose 2023 are ADM's.
    """

    higher_is_better = False

    def update(self, generated: Features, reference: Features) -> None:
        """Add images to either set, or none: `Features.none()`.

        Raises:
            ValueError: if the extractor has no spatial features.
        """
        super().update(where_they_are(generated), where_they_are(reference))

    @property
    def protocol(self) -> str:
        """Return `sfid`."""
        return "sfid"

    def compute(self) -> dict[str, float]:
        """Return `sfid`."""
        return {"sfid": frechet_distance(*self.pools()).item()}


def where_they_are(features: Features) -> Features:
    """Return the features with the spatial ones in place of the pooled.

    Raises:
        ValueError: if there are none.
    """
    if features.spatial is None:
        raise ValueError(
            "sFID needs spatial features, and this extractor gives none; use InceptionV3, or leave "
            "SpatialFrechetDistance out"
        )
    return features._replace(pool=features.spatial)
