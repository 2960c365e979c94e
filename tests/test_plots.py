import torch

from ditprune import PruneTarget, Role
from ditprune.plan import LayerPlan
from ditprune.plots import pair_grid, row_variation_figure, sparsity_figure


def layers() -> list[LayerPlan]:
    return [
        LayerPlan(PruneTarget(f"{role}{block}", role, block, 1), (4, 4), pool, 4 * block, 0.1)
        for role, pool in ((Role.MLP_UP, "layer"), (Role.MODULATION, "row"))
        for block in range(3)
    ]


def test_the_sparsity_of_every_layer_is_written_into_its_cell():
    texts = [text.get_text() for text in sparsity_figure(layers()).axes[0].texts]
    assert texts == ["0%", "25%", "50%"] * 2


def test_layers_pruned_per_row_are_filled_and_others_open():
    open_role, row_role = row_variation_figure(layers()).axes[0].collections
    assert open_role.get_facecolor()[:, 3].tolist() == [0, 0, 0]
    assert row_role.get_facecolor()[:, 3].tolist() == [1, 1, 1]


def test_each_dense_image_stands_above_the_pruned_one():
    dense = torch.zeros(4, 1, 64, 64, dtype=torch.uint8)
    pruned = torch.full((4, 1, 64, 64), 255, dtype=torch.uint8)
    grid = pair_grid(dense, pruned, num_pairs=4)
    assert grid.shape == (3, 2 * 66 + 2, 4 * 66 + 2)
    assert grid[0, 10, 10] == 0
    assert grid[0, 10 + 66, 10] == 255
