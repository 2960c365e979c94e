import torch
from contracts import counts, some_stats, target

from ditprune.clustered import telling
from ditprune.granularity import CoClusters, Layer, Row, RowClusters
from ditprune.plan import row_variations
from ditprune.plots import clusters_figure, save_clusters
from ditprune.saliency import Magnitude, Scores
from ditprune.targets import Role


def loud_rows(gap: float) -> torch.Tensor:
    """Noise whose first six rows of twenty are so many times as loud."""
    noise = 0.5 + torch.rand(20, 64, generator=torch.Generator().manual_seed(0))
    return noise * torch.where(torch.arange(20) < 6, gap, 1.0).unsqueeze(1)


WEIGHTS = {
    target("up.0"): loud_rows(3.0),
    target("up.1"): loud_rows(9.0),
    target("up.2"): loud_rows(5.0),
    target("down.0", Role.MLP_DOWN): loud_rows(1.0),
    target("gate.0", Role.MODULATION): loud_rows(2.0),
}
SCORES = Scores(Magnitude(), WEIGHTS, {layer: some_stats(64) for layer in WEIGHTS})


def told_by(granularity):
    pools = granularity.pools(SCORES, counts(SCORES, 0.5))
    return telling(SCORES, pools, row_variations(SCORES))


def test_of_each_role_the_layer_whose_rows_differ_most_is_told_if_it_has_clusters():
    layers = told_by(RowClusters())
    assert [layer.target.name for layer in layers] == ["up.1", "gate.0"]
    assert torch.equal(layers[0].score, loud_rows(9.0))
    assert (layers[0].clusters.row_labels[:6] == layers[0].clusters.row_labels[0]).all()


def test_where_no_rows_are_grouped_nothing_is_told():
    assert told_by(Layer()) == told_by(Row()) == told_by(RowClusters(max_clusters=1)) == []


def test_blocks_of_rows_and_columns_are_told_too():
    assert len(told_by(CoClusters(2))) == 3


def test_the_title_tells_what_the_clusters_keep():
    layer = told_by(RowClusters(rho=1.0))[0]
    # Half of twenty rows stay: all of the six loud ones, and four rows' worth of the others.
    assert layer.title().endswith(f"2 row clusters that keep {4 / 14:.0%} to 100%")
    assert layer.title().startswith("up.1: row variation ")
    assert clusters_figure(layer).get_suptitle() == layer.title()


def test_heat_maps_are_written_in_place_of_those_of_an_earlier_run(tmp_path):
    save_clusters(told_by(RowClusters()), tmp_path)
    folder = tmp_path / "clusters"
    assert {path.name for path in folder.iterdir()} == {"mlp_up.png", "modulation.png"}
    save_clusters(told_by(RowClusters())[:1], tmp_path)
    assert {path.name for path in folder.iterdir()} == {"mlp_up.png"}
    save_clusters([], tmp_path)
    assert not folder.exists()
