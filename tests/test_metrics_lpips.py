"""LPIPS, on an AlexNet of random weights."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch.nn.functional import conv2d, max_pool2d, relu
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchmetrics.functional.image import lpips as theirs

from ditprune.metrics import LPIPS
from ditprune.metrics.lpips import URL

HEADS = torch.load(
    Path(theirs.__file__).with_name("lpips_models") / "alex.pth",
    map_location="cpu",
    weights_only=True,
)


def random_images(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).byte()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of torchvision's format, classifier and all."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("alexnet") / "alexnet-owt-7be5be79.pth"
    state = torchvision.models.alexnet(weights=None).state_dict()
    state = {name: 2 * value for name, value in state.items()}  # or it says next to nothing
    torch.save(state, path)
    return str(path)


def activations(state, images):
    """AlexNet's five rectified convolutions by hand, of images in [0, 1]."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    x = (2 * images - 1 - shift) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    layers = [(0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)]
    for number, stride, padding in layers:
        if number in (3, 6):
            x = max_pool2d(x, 3, 2)
        weight, bias = (state[f"features.{number}.{part}"] for part in ("weight", "bias"))
        x = relu(conv2d(x, weight, bias, stride, padding))
        yield x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()


def by_hand(weights, x, y):
    """Zhang et al. 2018, Eq. 1."""
    state = torch.load(weights, weights_only=True)
    pairs = zip(activations(state, x / 255), activations(state, y / 255), strict=True)
    heads = [HEADS[f"lin{i}.model.1.weight"] for i in range(5)]
    weighed = [(h * (a - b).square()).sum(1) for h, (a, b) in zip(heads, pairs, strict=True)]
    return torch.stack([distance.mean((1, 2)) for distance in weighed]).sum(0)


@pytest.mark.parametrize("size", [31, 64])
def test_it_is_the_papers_formula_for_each_image(weights, size):
    x, y = random_images(3, 3, size, size), random_images(3, 3, size, size, seed=1)
    y[1] = (x[1] // 2 + y[1] // 2).byte()
    distances = LPIPS(weights).compare(x, y)
    assert distances.tolist() == pytest.approx(by_hand(weights, x, y).tolist(), rel=1e-4)
    assert distances.dtype == torch.float64
    assert distances[1] < 0.9 * distances[0]


def test_it_is_torchmetrics_own_number(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / "alexnet-owt-7be5be79.pth").symlink_to(weights)
    x, y = random_images(2, 3, 40, 50), random_images(2, 3, 40, 50, seed=1)
    expected = learned_perceptual_image_patch_similarity(
        x / 255, y / 255, "alex", reduction="none", normalize=True
    )
    assert LPIPS(weights).compare(x, y).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert torch.equal(LPIPS().compare(x, y), LPIPS(weights).compare(x, y))  # as if downloaded


def test_equal_images_are_no_distance_apart_and_the_order_does_not_matter(weights):
    metric = LPIPS(weights)
    x, y = random_images(1, 3, 40, 40), random_images(1, 3, 40, 40, seed=1)
    assert metric.compare(x, x.clone()).tolist() == [0]
    assert metric.compare(x, y).shape == (1,)
    assert metric.compare(x, y).item() == pytest.approx(metric.compare(y, x).item(), rel=1e-6)


def test_grey_images_are_seen_as_colour(weights):
    metric = LPIPS(weights)
    x, y = random_images(2, 1, 40, 40), random_images(2, 1, 40, 40, seed=1)
    colour = metric.compare(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1))
    assert torch.equal(metric.compare(x, y), colour)


def test_the_name_is_of_the_weights(weights):
    assert LPIPS(weights).name == LPIPS(weights).name
    assert LPIPS(weights).name.startswith("lpips/alex/")


def test_images_without_a_partner_or_too_small_are_refused(weights):
    x = random_images(2, 3, 40, 40)
    with pytest.raises(ValueError, match=r"\(2, 3, 40, 40\) and \(1, 3, 40, 40\) differ"):
        LPIPS(weights).compare(x, x[:1])
    with pytest.raises(ValueError, match="at least 31x31 pixels; got 40x30"):
        LPIPS(weights).compare(x[..., :30], x[..., :30])


def test_missing_weights_are_an_error_that_names_the_file_the_address_and_the_option(tmp_path):
    path = tmp_path / "no.pth"
    with pytest.raises(ValueError, match=f"AlexNet's weights from {path}: .*{URL}.* as weights="):
        _ = LPIPS(str(path)).network


def test_a_download_that_fails_is_an_error_that_names_the_address_and_the_option(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(ValueError, match=rf"{URL} \(kept in {tmp_path}.*no network.* as weights="):
        _ = LPIPS().network


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=f"cannot load AlexNet's weights from {path}"):
        _ = LPIPS(str(path)).network
