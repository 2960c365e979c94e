import copy
import json

import pytest
import torch
from lightning_project import Data, Project, pruning, trainer

from ditprune.callbacks import PredictionCallback, ReportCallback
from ditprune.datamodules import CalibrationDataset, collate
from ditprune.families import DiT
from ditprune.prediction import HELD_OUT_SEED


class Seeded(Data):
    def calibration_dataloader(self, seed: int = 0):
        dataset = CalibrationDataset(
            self.images, self.labels, self.scheduler, self.num_calibration_samples, seed=seed
        )
        return torch.utils.data.DataLoader(dataset, self.batch_size, collate_fn=collate)


def by_hand(dense, pruned, data) -> dict[float, list[float]]:
    """The relative errors of held-out samples, one by one, by the lower end of their level."""
    found: dict[float, list[float]] = {}
    for batch in data.calibration_dataloader(seed=HELD_OUT_SEED):
        for i in range(len(batch.latents)):
            one = batch.sample(i)
            with torch.no_grad():
                expected, given = (DiT().predict(m.eval(), one) for m in (dense, pruned))
            error = (given - expected).square().sum() / expected.square().sum()
            found.setdefault(int(one.noise_level * 4) / 4, []).append(error.item())
    return found


@pytest.mark.parametrize("verb", ["fit", "validate"])
@pytest.mark.parametrize("first", [True, False])
def test_errors_are_those_of_samples_no_method_was_given_in_any_order_of_callbacks(
    verb, first, tiny_dit, scheduler, tmp_path
):
    dense, measured = copy.deepcopy(tiny_dit), PredictionCallback(num_bins=4)
    rest = [*pruning(), ReportCallback()]
    data = Seeded(scheduler, num_calibration_samples=16)
    run = trainer(tmp_path, [measured, *rest] if first else [*rest, measured])
    getattr(run, verb)(Project(tiny_dit), datamodule=data)
    expected = by_hand(dense, tiny_dit, data)
    assert {each.low: each.num_samples for each in measured.errors} == {
        low: len(errors) for low, errors in expected.items()
    }
    for each in measured.errors:
        assert each.high == each.low + 0.25
        errors = expected[each.low]
        assert each.error == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert all(each.error > 0.01 for each in measured.errors)
    told = json.loads((tmp_path / "report.json").read_text())["predictions"]
    assert [entry["error"] for entry in told] == [each.error for each in measured.errors]
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Predictions</h2>" in page
    assert 'alt="predictions: error"' in page
    assert "| 0.25 to 0.5 |" in (tmp_path / "report.md").read_text()


def test_without_other_samples_it_is_refused_at_once(tiny_dit, scheduler, tmp_path):
    with pytest.raises(ValueError, match=r"calibration_dataloader\(seed\), and Data has none"):
        trainer(tmp_path, [*pruning(), PredictionCallback()]).validate(
            Project(tiny_dit), datamodule=Data(scheduler)
        )


def test_without_pruning_there_is_nothing_to_compare(tiny_dit, scheduler, tmp_path):
    with pytest.raises(ValueError, match="takes a GranularityCallback, and the trainer has none"):
        trainer(tmp_path, [PredictionCallback()]).validate(
            Project(tiny_dit), datamodule=Seeded(scheduler)
        )
    with pytest.raises(ValueError, match="num_bins must be at least 1; got 0"):
        PredictionCallback(num_bins=0)
