"""CLIP as a feature extractor and as a judge of prompts, on a small random network."""

import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer, CLIPVisionModel

from ditprune.metrics import CMMD, ClipImages, ClipScore, PickScore, cmmd
from ditprune.metrics.clip import embeddings_in
from ditprune.metrics.prompted_clip import as_clip_resizes, cosines

SIZE, LIMIT = 32, 8
LETTERS = "abcdefghij"


def random_images(*shape, seed=0):
    coarse = torch.rand(*shape[:2], 6, 6, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear") * 255).byte()


def text_config(size):
    return {
        "vocab_size": len(LETTERS) + 2,
        "max_position_embeddings": LIMIT,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
        "pad_token_id": size - 1,
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder that looks like the hub's: two layers 16 wide, ten words of one letter."""
    folder = tmp_path_factory.mktemp("clip")
    narrow = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={**narrow, **text_config(len(LETTERS) + 2)},
        vision_config={**narrow, "image_size": SIZE, "patch_size": 8},
        projection_dim=12,
    )
    generator = torch.Generator().manual_seed(0)
    network = CLIPModel(config)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    network.save_pretrained(folder)
    words = [f"{letter}</w>" for letter in LETTERS]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return str(folder)


def by_transformers(weights, pixels, tokens):
    """Cosines of all images with all texts, without a line of ours."""
    network = CLIPModel.from_pretrained(weights)
    with torch.no_grad():
        logits = network(pixel_values=pixels, input_ids=tokens).logits_per_image
    return logits / network.logit_scale.exp()


def as_google_resizes(images):
    """Jayasumana et al.: bicubic on [0, 1] without smoothing, then the processor's mean and std."""
    squares = torch.nn.functional.interpolate(images.float() / 255, (SIZE, SIZE), mode="bicubic")
    processor = CLIPImageProcessor()
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return (squares - mean.view(3, 1, 1)) / std.view(3, 1, 1)


# Embeddings of images.


def test_embeddings_are_those_of_the_network_of_length_one(weights):
    images = random_images(3, 3, 40, 56)
    features = ClipImages(weights).extract(images)
    network = CLIPModel.from_pretrained(weights)
    with torch.no_grad():
        pooled = network.vision_model(as_google_resizes(images)).pooler_output
        expected = network.visual_projection(pooled)
    assert torch.allclose(features.pool, expected / expected.norm(dim=1, keepdim=True), atol=1e-6)
    assert (features.pool.dtype, features.logits.shape) == (torch.float32, (3, 0))
    assert features.pool.std(0).mean() > 0.01  # the images are told apart


def test_a_resizing_that_smooths_would_be_seen(weights):
    images = random_images(2, 3, 256, 256, seed=1)
    images[:, :, ::2] = 0  # stripes that only smoothing turns grey
    smoothed = ClipImages(weights).extract((as_clip_resizes(images, SIZE) * 255).byte())
    assert not torch.allclose(ClipImages(weights).extract(images).pool, smoothed.pool, atol=1e-3)


def test_grey_images_are_seen_as_colour_and_no_images_have_no_embeddings(weights):
    extractor, grey = ClipImages(weights), random_images(2, 1, 40, 40)
    colour = extractor.extract(grey.repeat(1, 3, 1, 1))
    assert torch.equal(extractor.extract(grey).pool, colour.pool)
    assert [part.shape for part in extractor.extract(grey[:0]).tensors().values()] == [
        (0, 12),
        (0, 0),
    ]
    with pytest.raises(ValueError, match=r"1 or 3 channels; got the shape \(2, 4, 8, 8\)"):
        extractor.extract(random_images(2, 4, 8, 8))


def test_cmmd_of_images_is_that_of_their_embeddings(weights):
    x, y = (ClipImages(weights).extract(random_images(9, 3, 40, 40, seed=i)) for i in (1, 2))
    metric = CMMD()
    metric.update(x, y)
    assert metric.compute() == {"cmmd": cmmd(x.pool, y.pool).item()}


def test_embeddings_may_come_bare_or_among_other_things():
    embeddings = torch.rand(2, 3)
    assert embeddings_in(embeddings) is embeddings  # transformers 4
    assert embeddings_in(SimpleNamespace(pooler_output=embeddings)) is embeddings  # transformers 5


def test_the_precision_of_the_run_does_not_reach_the_embeddings(weights):
    images, random_numbers = random_images(2, 3, 40, 40), torch.get_rng_state()
    expected = ClipImages(weights).extract(images)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            features = ClipImages(weights).extract(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(features.pool, expected.pool)
    assert torch.equal(random_numbers, torch.get_rng_state())


def test_the_name_follows_the_weights(weights, tmp_path):
    network = CLIPModel.from_pretrained(weights)
    network.visual_projection.weight.data += 1
    network.save_pretrained(tmp_path)
    assert ClipImages(weights).name == ClipImages(weights).name != ClipImages(str(tmp_path)).name
    assert ClipImages(weights).name.startswith("clip-cmmd/")


# Weights that are not there.


@pytest.mark.parametrize("what", ["missing", "empty", "pickled", "cut off"])
def test_missing_and_broken_weights_are_an_error_that_names_them_and_the_way_out(
    weights, tmp_path, what
):
    folder = tmp_path / what
    if what != "missing":
        folder.mkdir()
    if what in ("pickled", "cut off"):
        network = CLIPModel.from_pretrained(weights)
        network.config.save_pretrained(folder)
        if what == "pickled":
            torch.save(network.state_dict(), folder / "pytorch_model.bin")
        else:
            (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=rf"CLIPModel from '{folder}': .*weights=, .*safetensors"):
        ClipImages(str(folder)).extract(random_images(1, 3, 40, 40))


@pytest.fixture
def no_network(monkeypatch):
    """Whatever the hub's client keeps, it finds nothing and cannot ask."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("of", [ClipImages, ClipScore, PickScore])
def test_weights_that_cannot_be_reached_are_an_error_that_names_their_address(no_network, of):
    address = "https://huggingface.co/nobody/nothing"
    with pytest.raises(ValueError, match=f"weights=, .* model.safetensors of {address}"):
        _ = of("nobody/nothing").network


def test_weights_of_another_network_are_refused_and_not_drawn_at_random(weights, tmp_path):
    network = CLIPModel.from_pretrained(weights)
    network.save_pretrained(tmp_path)
    CLIPVisionModel(network.config.vision_config).save_pretrained(tmp_path / "vision")
    (tmp_path / "config.json").rename(tmp_path / "vision" / "config.json")
    with pytest.raises(ValueError, match="is no CLIPModel: it lacks .*weights="):
        _ = ClipImages(str(tmp_path / "vision")).network


def test_a_missing_tokenizer_is_an_error_that_names_it(weights, tmp_path):
    CLIPModel.from_pretrained(weights).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"tokenizer from '{tmp_path}': .*weights=.* vocab.json"):
        ClipScore(str(tmp_path)).score(random_images(1, 3, 40, 40), ["a"])


# Scores of images with prompts.


def expected_cosines(weights):
    """Of three images with `a b`, `c` and `j i`: all of them with all."""
    end = len(LETTERS) + 1
    tokens = torch.tensor([[end - 1, 0, 1, end], [end - 1, 2, end, end], [end - 1, 9, 8, end]])
    images = random_images(3, 3, SIZE, SIZE)
    return by_transformers(weights, as_google_resizes(images), tokens)  # nothing to resize


def test_scores_are_the_networks_own_cosines_of_each_image_with_its_own_prompt(weights):
    cosines = expected_cosines(weights)
    scores = ClipScore(weights).score(random_images(3, 3, SIZE, SIZE), ["a b", "c", "j i"])
    assert scores.tolist() == pytest.approx((100 * cosines.diagonal()).tolist(), abs=1e-4)
    assert scores.dtype == torch.float64
    assert not torch.allclose(cosines, cosines[:, :1], atol=1e-3)  # prompts are told apart


def test_pick_score_is_the_networks_own_logit(weights, tmp_path):
    network = CLIPModel.from_pretrained(weights)
    network.logit_scale.data.fill_(math.log(90))
    network.save_pretrained(tmp_path)
    CLIPTokenizer.from_pretrained(weights).save_pretrained(tmp_path)
    scores = PickScore(str(tmp_path)).score(random_images(3, 3, SIZE, SIZE), ["a b", "c", "j i"])
    expected = 90 * expected_cosines(weights).diagonal()
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_names_hold_protocol_network_weights_and_unit(weights):
    clip, pick = ClipScore(weights), PickScore(weights)
    folder, digest = weights.rsplit("/", 1)[1], ClipImages(weights).name.partition("/")[2]
    assert clip.name == f"clip_score/{folder}/{digest}/x100"
    assert pick.name == f"pick_score/{digest}/logit"


def test_long_prompts_are_warned_of_and_cut_before_the_end_token(weights, caplog):
    images = random_images(3, 3, SIZE, SIZE)
    longest, too_long = "a b c d e f", "a b c d e f g"  # start and end take two of eight
    with caplog.at_level(logging.WARNING):
        scores = ClipScore(weights).score(images, [longest, too_long, "a"])
        assert "1 of 3 prompts have more than 8 tokens" in caplog.text
        caplog.clear()
        again = ClipScore(weights).score(images[1:2], [longest])
        assert not caplog.records
    assert scores[1].item() == pytest.approx(again[0].item(), abs=1e-4)


def test_a_score_does_not_depend_on_the_other_prompts(weights):
    images, scorer = random_images(2, 3, SIZE, SIZE), ClipScore(weights)
    short, long = (scorer.embed_texts(["a", other])[0] for other in ("b", "b c d e f"))
    assert torch.equal(short, long)
    assert scorer.score(images, ["a", "b"])[0] == scorer.score(images, ["a", "b c d e f"])[0]


def test_images_are_resized_as_clips_own_processor_does(weights):
    images = random_images(2, 3, 100, 150)
    images[:, :, ::2] = 0
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_normalize=False
    )
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    theirs = processor(pictures, return_tensors="pt").pixel_values
    assert (as_clip_resizes(images, SIZE) - theirs).abs().max() < 1.01 / 255


def test_a_cosine_below_zero_stays_there():
    assert cosines(torch.eye(2), torch.tensor([[-3.0, 0.0], [0.0, 1.0]])).tolist() == [-1, 1]


@pytest.mark.parametrize("of", [ClipScore, PickScore])
def test_an_image_without_a_prompt_is_refused_with_both_numbers(weights, of):
    with pytest.raises(ValueError, match="got 2 images and 1 prompts"):
        of(weights).score(random_images(2, 3, SIZE, SIZE), ["a"])
    with pytest.raises(ValueError, match="got 0 images and 0 prompts"):
        of(weights).score(random_images(0, 3, SIZE, SIZE), [])
