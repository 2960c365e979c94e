"""DINOv2 as a feature extractor, on a small random network."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import Dinov2Config, Dinov2Model

from ditprune.metrics import Dinov2, FrechetDistance
from ditprune.metrics.dinov2 import as_dinov2_interpolates


def random_images(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).byte()


def save_network(folder, image_size=224):
    torch.manual_seed(0)
    network = Dinov2Model(
        Dinov2Config(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=14,
        )
    )
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    network.save_pretrained(folder)
    return network.eval()


def as_pillow_resizes(images):
    """dgm-eval's transform: PIL to 224x224, [0, 1], ImageNet's mean and deviation."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    small = [picture.resize((224, 224), Image.Resampling.BICUBIC) for picture in pictures]
    pixels = torch.tensor(np.stack([np.asarray(picture) for picture in small]))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)


def test_features_are_the_class_token_of_pillows_pixels(tmp_path):
    network, images = save_network(tmp_path), random_images(2, 3, 256, 300)
    with torch.no_grad():
        expected = network(as_pillow_resizes(images)).last_hidden_state[:, 0]
    features = Dinov2(str(tmp_path)).extract(images)
    assert (features.pool.shape, features.logits.shape) == ((2, 16), (2, 0))
    assert torch.allclose(features.pool, expected, atol=1e-3)
    assert (features.pool[0] - features.pool[1]).abs().max() > 1e-2


def test_images_of_the_right_size_pass_as_they_are(tmp_path):
    network, images = save_network(tmp_path), random_images(1, 3, 224, 224)
    with torch.no_grad():
        expected = network(as_pillow_resizes(images)).pooler_output
    assert torch.allclose(Dinov2(str(tmp_path)).extract(images).pool, expected, atol=1e-5)


def test_positions_are_on_the_authors_grid_and_not_on_that_of_transformers(tmp_path):
    network = save_network(tmp_path, image_size=518)
    stored = network.embeddings.position_embeddings.detach()
    used = Dinov2(str(tmp_path)).network.embeddings.position_embeddings
    grid = stored[:, 1:].view(1, 37, 37, 16).permute(0, 3, 1, 2)
    plain = interpolate(grid, (16, 16), mode="bicubic").flatten(2).transpose(1, 2)
    # dinov2's interpolate_pos_encoding: scale_factor = (16 + 0.1) / 37
    theirs = interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    assert used.shape == (1, 257, 16)
    assert torch.equal(used[:, :1], stored[:, :1])
    assert torch.equal(used[:, 1:], theirs.permute(0, 2, 3, 1).reshape(1, 256, 16))
    assert not torch.allclose(used[:, 1:], plain, atol=1e-2)
    assert torch.equal(as_dinov2_interpolates(used, 16), used)


def test_a_network_of_larger_images_reads_ours(tmp_path):
    save_network(tmp_path, image_size=518)
    extractor, grey = Dinov2(str(tmp_path)), random_images(2, 1, 40, 40)
    colour = extractor.extract(grey.repeat(1, 3, 1, 1))
    assert torch.equal(extractor.extract(grey).pool, colour.pool)
    assert extractor.extract(grey[:0]).pool.shape == (0, 16)
    assert extractor.name.startswith("dinov2/")


def test_the_frechet_distance_reads_it(tmp_path):
    save_network(tmp_path)
    metric, extractor = FrechetDistance(), Dinov2(str(tmp_path))
    features = extractor.extract(random_images(3, 3, 40, 40))
    metric.update(features, features)
    assert metric.compute()["fid"] == pytest.approx(0, abs=1e-8)


def test_missing_weights_are_an_error_that_names_them(tmp_path):
    with pytest.raises(ValueError, match=f"Dinov2Model from '{tmp_path}/no': .*weights="):
        _ = Dinov2(f"{tmp_path}/no").network
