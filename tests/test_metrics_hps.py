"""HPSv2, on a small random network of open_clip's."""

import builtins

import open_clip
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from ditprune.metrics import HPSv2, hps
from ditprune.metrics.hps import in_square, load_hps

SIDE = 32
CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {
        "image_size": SIDE,
        "layers": 2,
        "width": 16,
        "head_width": 8,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 8,
        "heads": 2,
        "layers": 2,
    },
}
PROMPTS = ["a red cat", "a dog on a sofa", "nothing at all"]


def random_images(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).byte()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return open_clip.CLIP(**CONFIG).eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """As the authors' file is: the network's weights under one name."""
    path = tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": network.state_dict()}, path)
    return str(path)


@pytest.fixture
def scorer(weights, monkeypatch):
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: CONFIG)
    return HPSv2(weights)


def by_open_clip(network, images, prompts):
    """With its own transform of Pillow's images, its tokenizer and its normalised embeddings."""
    transform = open_clip.image_transform(SIDE, is_train=False, resize_mode="longest")
    pixels = torch.stack([transform(to_pil_image(image)) for image in images])
    tokens = open_clip.get_tokenizer("ViT-H-14")(prompts)
    with torch.no_grad():
        seen = network.encode_image(pixels, normalize=True)
        said = network.encode_text(tokens, normalize=True)
    return 100 * (seen * said).sum(1)


@pytest.mark.parametrize(
    ("size", "tolerance"),
    # Pillow, which open_clip resizes by, rounds some bytes otherwise.
    [((32, 32), 1e-4), ((64, 64), 0.15), ((48, 96), 0.03), ((128, 64), 0.03)],
)
def test_scores_are_the_diagonal_of_open_clips_own_cosines(size, tolerance, scorer, network):
    images = random_images(3, 3, *size)
    expected = by_open_clip(network, images, PROMPTS)
    assert torch.allclose(scorer.score(images, PROMPTS).float(), expected, atol=tolerance)
    assert scorer.score(images, PROMPTS).std() > 1


def test_the_whole_image_is_seen_on_black():
    white = torch.full((1, 3, 20, 40), 255, dtype=torch.uint8)
    pixels = in_square(white, 16)
    assert pixels.shape == (1, 3, 16, 16)
    assert torch.equal(pixels[0, 0, :, 0], torch.tensor([0.0] * 4 + [1.0] * 8 + [0.0] * 4))
    assert torch.equal(in_square(white[:, :1], 16), pixels)


def test_a_score_does_not_depend_on_the_batch(scorer):
    images = random_images(3, 3, 40, 40)
    alone = [scorer.score(image[None], [p]) for image, p in zip(images, PROMPTS, strict=True)]
    assert torch.allclose(torch.cat(alone), scorer.score(images, PROMPTS), atol=1e-4)


def test_its_name_tells_version_and_weights(scorer, tmp_path):
    assert scorer.name.startswith("hps/v2.1/")
    assert scorer.name.endswith("/x100")
    torch.manual_seed(1)
    torch.save(open_clip.CLIP(**CONFIG).state_dict(), tmp_path / "other.pt")  # without a name
    assert HPSv2(str(tmp_path / "other.pt")).name != scorer.name


def test_other_files_numbers_of_prompts_and_hubs_out_of_reach_are_refused(
    scorer, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match="2 images and 3 prompts"):
        scorer.score(random_images(2, 3, 32, 32), PROMPTS)
    torch.save({"state_dict": {"visual.proj": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="(?s)cannot load HPSv2's .*xswu/HPSv2"):
        load_hps(str(tmp_path / "other.pt"), CONFIG)

    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr(hps, "hf_hub_download", unreachable)
    with pytest.raises(ValueError, match="cannot load .* no network"):
        load_hps("xswu/HPSv2", CONFIG)


def test_without_the_extra_the_way_out_is_told_when_it_is_made(monkeypatch):
    real = builtins.__import__

    def missing(name, *args):
        if name == "open_clip":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"pip install 'ditprune\[hps\]'"):
        HPSv2()
