import lightning as L
import pytest
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning_project import Data, Project, pruning, trainer


class Unpruning(L.Callback):
    """Swaps other weights in when validation starts, as EMA callbacks do."""

    def on_validation_epoch_start(self, trainer, pl_module):
        pl_module.transformer.transformer_blocks[1].ff.net[2].weight.data.fill_(1.0)


@pytest.mark.parametrize("position", [0, 2])
def test_weights_swapped_in_at_the_start_of_validation_are_noticed(
    tiny_dit, scheduler, tmp_path, position
):
    callbacks = pruning()
    callbacks.insert(position, Unpruning())
    with pytest.raises(RuntimeError, match=r"1 pruned layers hold.*blocks\.1\.ff\.net\.2"):
        trainer(tmp_path, callbacks).validate(Project(tiny_dit), datamodule=Data(scheduler))


def test_lightnings_own_weight_averaging_is_noticed(tiny_dit, scheduler, tmp_path):
    run = trainer(tmp_path, [*pruning(), EMAWeightAveraging()])
    project = Project(tiny_dit)
    run.fit(project, datamodule=Data(scheduler))
    with pytest.raises(RuntimeError, match="EMA, weight averaging"):
        run.validate(project, datamodule=Data(scheduler))
