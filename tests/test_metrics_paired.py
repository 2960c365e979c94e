"""Errors of images beside their partners."""

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from ditprune.metrics import paired_errors


def random_images(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).byte()


def ssim_by_torchmetrics(images, reference):
    x, y = images.double() / 255, reference.double() / 255
    return structural_similarity_index_measure(x, y, reduction="none", data_range=1.0)


def test_black_beside_white_is_an_error_of_one_although_bytes_wrap():
    black, white = torch.zeros(1, 1, 8, 8).byte(), torch.full((1, 1, 8, 8), 255).byte()
    errors = paired_errors(black, white)
    assert errors["mse"].item() == 1
    assert errors["psnr"].item() == 0


def test_each_image_has_its_own_error():
    reference = torch.zeros(3, 2, 8, 8).byte()
    images = reference.clone()
    images[1] += 51  # a fifth everywhere
    images[2, 0] += 51  # a fifth in half of the values
    errors = paired_errors(images, reference)
    assert errors["mse"].tolist() == pytest.approx([0, 0.04, 0.02])
    assert errors["psnr"].tolist() == pytest.approx([torch.inf, 13.9794001, 16.9897000])


def test_equal_images_are_perfect():
    images = random_images(2, 3, 9, 8)
    errors = paired_errors(images, images.clone())
    assert errors["psnr"].isinf().all()
    assert (errors["psnr"] > 0).all()
    assert errors["ssim"].tolist() == pytest.approx([1, 1], abs=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (6, 6), (32, 20)])
def test_ssim_is_torchmetrics_with_mirrored_edges_averaged_over_channels(shape):
    images, reference = random_images(2, 3, *shape), random_images(2, 3, *shape, seed=1)
    images[0] = (images[0] // 8 + reference[0] * 7.0 // 8).byte()  # one pair is alike
    expected = ssim_by_torchmetrics(images, reference).tolist()
    assert paired_errors(images, reference)["ssim"].tolist() == pytest.approx(expected, abs=1e-9)


def test_an_image_measures_the_same_alone_and_in_a_batch():
    images, reference = random_images(3, 1, 8, 8) // 4, random_images(3, 1, 8, 8, seed=1) // 4
    images[2] *= 4  # a batch's range would be this one's
    together = paired_errors(images, reference)
    for i in range(3):
        alone = paired_errors(images[i : i + 1], reference[i : i + 1])
        for name, values in alone.items():
            assert values.item() == pytest.approx(together[name][i].item(), rel=1e-12)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        paired_errors(random_images(0, 1, 8, 8), random_images(0, 1, 8, 8))


@pytest.mark.parametrize("other", [(1, 1, 8, 8), (2, 1, 8, 9), (2, 3, 8, 8)])
def test_images_without_a_partner_are_refused_instead_of_broadcast(other):
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 8\) and .* differ"):
        paired_errors(random_images(2, 1, 8, 8), random_images(*other))


def test_images_smaller_than_the_window_reaches_are_refused():
    tiny = random_images(1, 1, 8, 5)
    with pytest.raises(ValueError, match="at least 6x6 pixels; got 8x5"):
        paired_errors(tiny, tiny)
