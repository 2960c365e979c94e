"""ImageReward, on a small random network under the authors' names."""

import logging
import math

import pytest
import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear
from transformers import BertTokenizer
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig

from ditprune.metrics import ImageReward, image_reward
from ditprune.metrics.clip import MEAN, STD
from ditprune.metrics.image_reward import load_reward, renamed

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog"]
WIDTH, TEXT_WIDTH, HEADS, DEPTH, SIZE, PATCH = 16, 12, 2, 2, 32, 16
VISION = BlipVisionConfig(
    hidden_size=WIDTH,
    intermediate_size=24,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    image_size=SIZE,
    patch_size=PATCH,
    layer_norm_eps=1e-6,
)
TEXT = BlipTextConfig(
    vocab_size=len(WORDS),
    hidden_size=TEXT_WIDTH,
    encoder_hidden_size=WIDTH,
    intermediate_size=20,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    max_position_embeddings=40,
    layer_norm_eps=1e-12,
)


def random_images(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).byte()


def shapes():
    """What ImageReward.pt holds, as the authors' modules name it (timm's ViT, BLIP's BERT)."""
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    yield f"{vision}.cls_token", (1, 1, WIDTH)
    yield f"{vision}.pos_embed", (1, (SIZE // PATCH) ** 2 + 1, WIDTH)
    yield from layer(f"{vision}.patch_embed.proj", WIDTH, 3, PATCH, PATCH)
    yield from layer(f"{vision}.norm", WIDTH)
    for i in range(DEPTH):
        block = f"{vision}.blocks.{i}"
        yield from layer(f"{block}.norm1", WIDTH)
        yield from layer(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        yield from layer(f"{block}.attn.proj", WIDTH, WIDTH)
        yield from layer(f"{block}.norm2", WIDTH)
        yield from layer(f"{block}.mlp.fc1", 24, WIDTH)
        yield from layer(f"{block}.mlp.fc2", WIDTH, 24)
    yield f"{text}.embeddings.word_embeddings.weight", (len(WORDS), TEXT_WIDTH)
    yield f"{text}.embeddings.position_embeddings.weight", (40, TEXT_WIDTH)
    yield from layer(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    for i in range(DEPTH):
        block = f"{text}.encoder.layer.{i}"
        for name, width in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            yield from layer(f"{block}.{name}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            yield from layer(f"{block}.{name}.self.key", TEXT_WIDTH, width)
            yield from layer(f"{block}.{name}.self.value", TEXT_WIDTH, width)
            yield from layer(f"{block}.{name}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            yield from layer(f"{block}.{name}.output.LayerNorm", TEXT_WIDTH)
        yield from layer(f"{block}.intermediate.dense", 20, TEXT_WIDTH)
        yield from layer(f"{block}.output.dense", TEXT_WIDTH, 20)
        yield from layer(f"{block}.output.LayerNorm", TEXT_WIDTH)
    yield from layer("blip.vision_proj", 8, WIDTH)
    yield from layer("blip.text_proj", 8, TEXT_WIDTH)
    widths = (TEXT_WIDTH, 1024, 128, 64, 16, 1)
    for number, num_in, num_out in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        yield from layer(f"mlp.layers.{number}", num_out, num_in)


def layer(name, *shape):
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def published_state():
    """Random weights under the authors' names, and what else is in their file."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        state[name] = torch.randn(shape, generator=generator) / fan_in**0.5
    return {**state, "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward") / "ImageReward.pt"
    torch.save(published_state(), path)
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def scorer(weights, tokenizer, monkeypatch):
    monkeypatch.setattr(image_reward, "VISION", VISION)
    monkeypatch.setattr(image_reward, "TEXT", TEXT)
    return ImageReward(weights, tokenizer)


class ByHand:
    """BLIP's forward pass on the authors' names, without a line of transformers."""

    def __init__(self, state):
        self.state = state

    def linear(self, name, x):
        return linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name, x, eps):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return layer_norm(x, weight.shape, weight, bias, eps)

    def attend(self, q, k, v, mask=None):
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None].bool(), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def see(self, pixels):
        name = "blip.visual_encoder"
        patches = conv2d(
            pixels,
            self.state[f"{name}.patch_embed.proj.weight"],
            self.state[f"{name}.patch_embed.proj.bias"],
            stride=PATCH,
        )
        token = self.state[f"{name}.cls_token"].expand(len(pixels), -1, -1)
        x = torch.cat([token, patches.flatten(2).mT], 1) + self.state[f"{name}.pos_embed"]
        for i in range(DEPTH):
            block = f"{name}.blocks.{i}"
            q, k, v = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(
                3, -1
            )
            x = x + self.linear(f"{block}.attn.proj", self.attend(q, k, v))
            inner = gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", inner)
        return self.norm(f"{name}.norm", x, 1e-6)

    def look(self, block, x, other, mask=None):
        q, k, v = (
            self.linear(f"{block}.self.{n}", y)
            for n, y in (("query", x), ("key", other), ("value", other))
        )
        out = self.linear(f"{block}.output.dense", self.attend(q, k, v, mask))
        return self.norm(f"{block}.output.LayerNorm", out + x, 1e-12)

    def read(self, ids, mask, seen):
        name = "blip.text_encoder"
        x = self.state[f"{name}.embeddings.word_embeddings.weight"][ids]
        x = x + self.state[f"{name}.embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self.norm(f"{name}.embeddings.LayerNorm", x, 1e-12)
        for i in range(DEPTH):
            block = f"{name}.encoder.layer.{i}"
            x = self.look(f"{block}.attention", x, x, mask)
            x = self.look(f"{block}.crossattention", x, seen)
            inner = gelu(self.linear(f"{block}.intermediate.dense", x))
            out = self.linear(f"{block}.output.dense", inner)
            x = self.norm(f"{block}.output.LayerNorm", out + x, 1e-12)
        return x[:, 0]

    def score(self, images, ids, mask):
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
        x = self.read(ids, mask, self.see((images / 255 - mean) / std))
        for number in (0, 2, 4, 6, 7):
            x = self.linear(f"mlp.layers.{number}", x)
        return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


def tokens(*prompts):
    """[CLS], the words, [SEP] and nothing up to 35."""
    ids = torch.zeros(len(prompts), 35).long()
    for row, prompt in zip(ids, prompts, strict=True):
        said = [WORDS.index(word) for word in ["[CLS]", *prompt.split(), "[SEP]"]]
        row[: len(said)] = torch.tensor(said)
    return ids, ids != 0


def test_scores_are_those_of_the_authors_network_by_hand(scorer):
    images, prompts = random_images(3, 3, SIZE, SIZE), ["a red cat", "dog", "a dog"]
    expected = ByHand(published_state()).score(images, *tokens(*prompts))
    scores = scorer.score(images, prompts)
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert scores.dtype == torch.float64
    assert scores.std() > 0.01  # images and prompts are told apart
    assert (scores - scorer.score(images, ["a dog", "a cat", "red"])).abs().min() > 1e-3
    assert (scores - scorer.score(images.flip(0), prompts))[[0, 2]].abs().min() > 1e-3


def test_every_weight_of_the_file_has_its_place_and_nothing_else(weights):
    names = set(load_reward(weights, VISION, TEXT).state_dict())
    assert set(renamed(published_state())) == names
    assert len(names) == len(published_state()) - 5  # two projections and the positions


@pytest.mark.parametrize("change", ["lacks", "adds"])
def test_a_file_that_lacks_or_adds_a_weight_is_refused(tmp_path, change):
    state, path = published_state(), tmp_path / "ImageReward.pt"
    if change == "lacks":
        del state["blip.visual_encoder.blocks.1.attn.proj.bias"]
    else:
        state["blip.visual_encoder.blocks.2.attn.proj.bias"] = torch.ones(WIDTH)
    torch.save(state, path)
    with pytest.raises(ValueError, match=f"(?s)ImageReward.pt from {path}: .*self_attn.projection"):
        load_reward(str(path), VISION, TEXT)


def test_the_published_network_has_blips_sizes():
    assert (image_reward.VISION.num_attention_heads, image_reward.VISION.patch_size) == (16, 16)
    # transformers would give 8 heads where BERT has 12, and the shapes would not tell.
    assert (image_reward.TEXT.num_attention_heads, image_reward.TEXT.vocab_size) == (12, 30524)


def test_long_prompts_are_warned_of_and_keep_their_end_token(scorer, caplog):
    images, longest = random_images(2, 3, SIZE, SIZE), " ".join(["cat"] * 33)
    with caplog.at_level(logging.WARNING):
        scores = scorer.score(images, [f"{longest} dog", longest])
    assert "1 of 2 prompts have more than 35 tokens" in caplog.text
    assert scores[0].item() == pytest.approx(scorer.score(images[:1], [longest]).item(), abs=1e-6)


def test_images_of_other_sizes_are_cropped_to_the_middle(scorer):
    images = random_images(1, 3, SIZE, SIZE)
    wide = torch.cat([images[..., :8].flip(0), images, images[..., :8]], 3)
    assert torch.equal(scorer.score(wide, ["a cat"]), scorer.score(images, ["a cat"]))


def test_the_name_holds_protocol_weights_and_unit(scorer):
    protocol, digest, unit = scorer.name.split("/")
    assert (protocol, len(digest), unit) == ("image_reward", 8, "standardized")


def test_an_image_without_a_prompt_is_refused_with_both_numbers(scorer):
    with pytest.raises(ValueError, match="got 2 images and 1 prompts"):
        scorer.score(random_images(2, 3, SIZE, SIZE), ["a"])


@pytest.mark.parametrize("weights", ["nobody/nothing", "/nowhere/ImageReward.pt"])
def test_missing_weights_are_an_error_that_names_the_file_the_address_and_the_option(
    weights, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    address = "https://huggingface.co/THUDM/ImageReward"
    with pytest.raises(ValueError, match=f"ImageReward.pt from {weights}: .*weights=.*{address}"):
        _ = ImageReward(weights).network


def test_a_missing_tokenizer_is_an_error_that_names_its_option(weights, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"'{tmp_path}': .* as tokenizer=, .* with vocab.txt"):
        _ = ImageReward(weights, str(tmp_path)).tokenizer
    address = "https://huggingface.co/nobody/nothing"
    with pytest.raises(ValueError, match=f"tokenizer=, .* with vocab.txt of {address}"):
        _ = ImageReward(weights, "nobody/nothing").tokenizer
