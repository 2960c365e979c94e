"""The spatial Frechet distance."""

import pytest
import torch

from ditprune.evaluation import SamplingPlan, draw_samples
from ditprune.measurement import extract_all
from ditprune.metrics import (
    DigitsClassifier,
    FeatureExtractor,
    Features,
    FrechetDistance,
    SpatialFrechetDistance,
    frechet_distance,
)


class Places(FeatureExtractor):
    name = "places"

    def extract(self, images):
        rows = images.float().mean(2).flatten(1)
        return Features(rows, rows, images[:, :, ::2].float().flatten(1))

    def to(self, device):
        return self


class Pooled(Places):
    name = "pooled"

    def extract(self, images):
        return super().extract(images)._replace(spatial=None)


class Greys:
    num_drawn = 0

    def sample(self, condition, generators):
        self.num_drawn += len(condition)
        return torch.stack([torch.rand(1, 8, 8, generator=g) for g in generators])


PLAN = SamplingPlan(torch.arange(7), chunk_size=3)


def random_features(seed, shift=0.0):
    draw = torch.randn(30, 9, generator=torch.Generator().manual_seed(seed)) + shift
    return Features(draw[:, :2], draw[:, 2:5], draw[:, 5:])


def test_it_is_the_distance_of_the_spatial_features_and_fid_stays_that_of_the_pooled():
    x, y = random_features(0), random_features(1, shift=1)
    spatial, pooled = SpatialFrechetDistance(), FrechetDistance()
    for metric in (spatial, pooled):
        metric.update(x, y)
    assert spatial.compute() == {"sfid": frechet_distance(x.spatial, y.spatial).item()}
    assert pooled.compute() == {"fid": frechet_distance(x.pool, y.pool).item()}


def test_an_extractor_without_spatial_features_is_refused_with_the_way_out():
    features = DigitsClassifier().extract(torch.zeros(2, 1, 8, 8).byte())
    assert features.spatial is None
    with pytest.raises(ValueError, match="this extractor gives none; use InceptionV3"):
        SpatialFrechetDistance().update(features, features)


def test_spatial_features_are_stored_with_the_images_and_found_again(tmp_path):
    drawn, found = (draw_samples(Greys(), PLAN, Places(), tmp_path, "dense")[0] for _ in "ab")
    assert drawn.features.spatial.shape == (7, 32)
    assert torch.equal(drawn.features.spatial, Places().extract(drawn.images).spatial)
    assert torch.equal(drawn.features.spatial, found.features.spatial)


def test_spatial_features_that_were_not_stored_are_extracted_from_the_images_kept(tmp_path):
    samples = draw_samples(Greys(), PLAN, Pooled(), tmp_path, "dense")[0]
    assert samples.features.spatial is None
    sampler = Greys()
    again = draw_samples(sampler, PLAN, Places(), tmp_path, "dense")[0]
    assert (sampler.num_drawn, again.features.spatial.shape) == (3, (7, 32))


@pytest.mark.parametrize("extractor", [Places(), Pooled()])
def test_references_have_the_features_that_their_extractor_gives(extractor):
    images = torch.randint(256, (5, 1, 8, 8)).byte()
    features = extract_all(iter(images.split(2)), extractor)
    expected = extractor.extract(images)
    assert features.tensors().keys() == expected.tensors().keys()
    for name, part in features.tensors().items():
        assert torch.equal(part, expected.tensors()[name])
