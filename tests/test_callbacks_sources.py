"""Real images, or statistics of more of them, or those of a data set by its categories."""

import json

import numpy as np
import pytest
import torch
from lightning_project import Data, Project, Rows, evaluation, pruning, trainer
from scipy.linalg import sqrtm

from ditprune.callbacks.sources import plan_of
from ditprune.catalogue import Catalogue
from ditprune.metrics import (
    FrechetDistance,
    InceptionScore,
    PrecisionRecall,
)


class Published(Data):
    """Knows the statistics of other images than it has."""

    def __init__(self, scheduler, folder, has_images: bool = True) -> None:
        super().__init__(scheduler)
        self.path, self.has_images = folder / "published.npz", has_images
        images = torch.randint(
            256, (50, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
        )
        pool = Rows().extract(images).pool.double().numpy()
        self.mean, self.covariance = pool.mean(0), np.cov(pool, rowvar=False)
        np.savez(self.path, mu=self.mean, sigma=self.covariance)

    def reference_dataloader(self):
        return super().reference_dataloader() if self.has_images else iter(())

    def reference_statistics(self):
        return self.path


def textbook_fid(pool, mean, covariance) -> float:
    pool = pool.double().numpy()
    ours = np.cov(pool, rowvar=False)
    spread = np.trace(ours + covariance - 2 * sqrtm(ours @ covariance).real)
    return ((pool.mean(0) - mean) ** 2).sum() + spread


@pytest.mark.parametrize("has_images", [True, False])
def test_frechet_distances_are_to_published_statistics_where_there_are_some(
    has_images, tiny_dit, scheduler, tmp_path
):
    others = [PrecisionRecall()] if has_images else []
    measured = evaluation(metrics=[FrechetDistance(), InceptionScore(), *others], num_samples=20)
    data = Published(scheduler, tmp_path, has_images)
    trainer(tmp_path, [*pruning(), measured]).validate(Project(tiny_dit), datamodule=data)
    expected = textbook_fid(measured.pruned_samples[0].features.pool, data.mean, data.covariance)
    assert measured.pruned["fid"] == [pytest.approx(expected, rel=1e-6)]
    protocol = json.loads((tmp_path / "results.json").read_text())["protocol"]
    images, _, statistics = protocol["reference"].rpartition("; ")
    assert statistics.startswith("Frechet distances to published.npz, ")
    assert images.startswith("20 images, ") if has_images else images == ""
    if has_images:
        without = evaluation(metrics=others, num_samples=20, samples_folder=str(tmp_path / "s"))
        plain = Data(scheduler)
        trainer(tmp_path, [without]).validate(Project(tiny_dit), datamodule=plain)
        assert without.dense["recall"] == measured.pruned["recall"]


def test_statistics_alone_do_not_do_for_metrics_of_images_and_that_is_said_at_once(
    tiny_dit, scheduler, tmp_path
):
    measured = evaluation(metrics=[FrechetDistance(), PrecisionRecall()])
    data = Published(scheduler, tmp_path, has_images=False)
    with pytest.raises(ValueError, match="statistics and no images, which PrecisionRecall compare"):
        trainer(tmp_path, [measured]).validate(Project(tiny_dit), datamodule=data)
    assert not (tmp_path / "samples").exists()


def test_without_images_and_statistics_there_is_nothing_to_compare_with_and_that_is_said_at_once(
    tiny_dit, scheduler, tmp_path
):
    class Empty(Data):
        def reference_dataloader(self):
            return iter(())

    with pytest.raises(ValueError, match=r"no real images .* reference_dataloader\(\) is empty"):
        trainer(tmp_path, [evaluation()]).validate(Project(tiny_dit), datamodule=Empty(scheduler))
    assert not (tmp_path / "samples").exists()


class Zoo(Data):
    """Twenty images of three categories, of which one has a single image among those drawn."""

    @property
    def catalogue(self):
        kinds = ["cats", "dogs"] * 9 + ["mice", "mice"]
        return Catalogue("zoo", [f"{i:02d}" for i in range(20)], kinds)


def test_the_fid_of_every_category_is_that_of_its_images_alone(tiny_dit, scheduler, tmp_path):
    measured = evaluation(num_samples=19, chunk_size=5)
    data = Zoo(scheduler)
    trainer(tmp_path, [*pruning(), measured]).validate(Project(tiny_dit), datamodule=data)
    assert measured.pruned.keys() == {"fid", "fid/cats", "fid/dogs", "mse", "psnr", "ssim"}
    real = Rows().extract(torch.cat(list(data.reference_dataloader()))).pool.double().numpy()
    for samples, values in (
        (measured.dense_samples, measured.dense),
        (measured.pruned_samples, measured.pruned),
    ):
        drawn = samples[0].features.pool
        for number, kind in enumerate(["cats", "dogs"]):
            theirs = real[number:18:2]
            expected = textbook_fid(
                drawn[number:18:2], theirs.mean(0), np.cov(theirs, rowvar=False)
            )
            assert values[f"fid/{kind}"] == [pytest.approx(expected, rel=1e-4, abs=1e-3)]


def test_a_single_category_is_not_told_twice(tiny_dit, scheduler, tmp_path):
    class Cats(Zoo):
        catalogue = Catalogue("cats", [f"{i:02d}" for i in range(20)], ["cats"] * 20)

    measured = evaluation()
    trainer(tmp_path, [measured]).validate(Project(tiny_dit), datamodule=Cats(scheduler))
    assert measured.dense.keys() == {"fid"}


def test_which_images_of_a_data_set_were_compared_with_is_written_beside(
    tiny_dit, scheduler, tmp_path
):
    data = Zoo(scheduler)
    trainer(tmp_path, [evaluation()]).validate(Project(tiny_dit), datamodule=data)
    assert (tmp_path / "evaluation_ids.txt").read_text().splitlines() == data.catalogue.ids
    protocol = json.loads((tmp_path / "results.json").read_text())["protocol"]
    assert protocol["data"] == f"zoo, 20 images, ids {data.catalogue.digest}"


def test_a_batch_is_no_larger_than_what_there_is_to_draw(scheduler):
    """A chunk is drawn in a batch of full size: of a million, nobody has the memory."""
    plan = plan_of(Data(scheduler), num_samples=7, seeds=(0,), chunk_size=10**6)
    assert plan.chunk_size == 7
    assert plan_of(Data(scheduler), 7, (0,), 3).chunk_size == 3
