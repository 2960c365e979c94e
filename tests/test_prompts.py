import copy
import warnings
from contextlib import suppress

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import PROMPTS, SIZES, encoded, options_of, pipeline_of
from torch import nn

from ditprune.diffusers_pipeline import conditional_family, denoiser_of
from ditprune.families import Batch
from ditprune.families.conditional import NULL
from ditprune.prompt_cache import digest, encode_once
from ditprune.prompts import (
    NO_GUIDANCE,
    BeforeFirstStep,
    Encoded,
    calls_before_first_step,
    encode,
    guidance,
    join,
)
from ditprune.sampling import sample_latents


def drawn_by_pipeline(pipeline, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """The first latents that the transformer sees, and those at the end."""
    seen = []

    def see(model, args, kwargs):
        latents = (*args, kwargs.get("hidden_states"))[0]
        seen.append(torch.stack(latents).squeeze(2) if isinstance(latents, list) else latents)

    handle = pipeline.transformer.register_forward_pre_hook(see, with_kwargs=True)
    generators = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    # A copy, since Z-Image writes into the list.
    prompts = list(PROMPTS)
    final = pipeline(prompt=prompts, generator=generators, output_type="latent", **options).images
    handle.remove()
    return seen[0][: len(PROMPTS)], final


def drawn_by_us(pipeline, found: Encoded, noise, scale: float, **options) -> torch.Tensor:
    model = pipeline.transformer
    return sample_latents(
        model,
        conditional_family(model).with_options(options),
        found.scheduler,
        noise,
        found.condition,
        [torch.Generator()] * len(noise),
        num_inference_steps=None,
        guidance_scale=scale,
    )


@pytest.mark.parametrize(
    ("kind", "embedded", "scale"),
    [
        ("flux", {"guidance_scale": 1.0}, {}),
        ("flux", {"guidance_scale": 3.5}, {}),
        ("flux", {"guidance_scale": 3.5}, {"true_cfg_scale": 4.0}),
        ("sd3", {}, {"guidance_scale": 1.0}),
        ("sd3", {}, {"guidance_scale": 4.0}),
        ("pixart", {}, {"guidance_scale": 1.0}),
        ("pixart", {}, {"guidance_scale": 2.0}),
        ("sana", {}, {"guidance_scale": 1.0}),
        ("sana", {}, {"guidance_scale": 4.0}),
        ("qwen_image", {}, {"true_cfg_scale": 1.0}),
        ("qwen_image", {}, {"true_cfg_scale": 4.0}),
        ("lumina2", {}, {"guidance_scale": 4.0}),
        ("lumina2", {"cfg_trunc_ratio": 0.5}, {"guidance_scale": 4.0}),
        ("lumina2", {"cfg_normalization": False}, {"guidance_scale": 4.0}),
        ("z_image", {}, {"guidance_scale": 0.0}),
        ("z_image", {}, {"guidance_scale": 1.0}),
    ],
)
def test_sampling_what_was_encoded_gives_the_pipelines_own_latents(kind, embedded, scale):
    pipeline = pipeline_of(kind)
    given = next(iter(scale.values()), 1.0)
    negative = {"negative_prompt": [""] * 2} if "true_cfg_scale" in scale else {}
    settings = {**options_of(kind), **embedded}
    noise, expected = drawn_by_pipeline(pipeline, **settings, **scale, **negative)
    guided = given > conditional_family(pipeline.transformer).neutral_scale
    found = encoded(pipeline, kind, guided=guided, **embedded)
    drawn = drawn_by_us(pipeline, found, noise, given, **embedded)
    assert torch.allclose(drawn, expected, rtol=1e-5, atol=1e-5)
    # What would be alike for any prompt, guidance or schedule proves nothing.
    other = drawn_by_us(pipeline, encoded(pipeline, kind, PROMPTS[::-1]), noise, 1.0)
    assert not torch.allclose(other, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["flux", "sd3", "pixart"])  # others put words before the prompt
def test_guidance_leads_away_from_the_negative_prompt_that_is_given(kind):
    pipeline = pipeline_of(kind)
    given, empty = (
        encoded(pipeline, kind, guided=True, **negative).condition[f"{NULL}encoder_hidden_states"]
        for negative in ({"negative_prompt": "dog"}, {})
    )
    dog = encoded(pipeline, kind, ["dog"]).condition["encoder_hidden_states"]
    assert torch.allclose(given, dog.expand_as(given), atol=1e-5)
    assert not torch.allclose(given, empty, atol=1e-2)


def test_what_both_branches_hear_alike_has_no_twin():
    names = set(encoded(pipeline_of("flux"), "flux", guided=True).condition)
    assert {f"{NULL}encoder_hidden_states", f"{NULL}pooled_projections", "img_ids"} <= names
    assert not names & {f"{NULL}img_ids", f"{NULL}txt_ids", f"{NULL}guidance"}


@pytest.mark.parametrize("kind", SIZES)
def test_a_prompt_is_encoded_alike_alone_and_among_others(kind):
    pipeline = pipeline_of(kind)
    together = encoded(pipeline, kind, guided=True)
    alone = encoded(pipeline, kind, PROMPTS[1:], guided=True)
    assert together.condition.keys() == alone.condition.keys()
    for name, x in alone.condition.items():
        assert torch.equal(together.condition[name][1:], x), name
    assert together.latents_shape == alone.latents_shape


class Calls:
    """How often each network of a pipeline runs."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.counts = {}
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                self.counts[name] = 0
                part.register_forward_pre_hook(lambda *_, name=name: self.count(name))
        # A hook would count the calls that are only written down, too.
        self.counts["transformer"] = 0
        block = conditional_family(pipeline.transformer).targets(pipeline.transformer)[0].block_name
        denoiser_of(pipeline).get_submodule(block).register_forward_pre_hook(
            lambda *_: self.count("transformer blocks")
        )

    def count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


def test_nothing_is_denoised_and_text_encoders_run_once_for_each_prompt():
    pipeline = pipeline_of("flux")
    calls, state = Calls(pipeline), torch.get_rng_state()
    encoded(pipeline, "flux")
    assert calls.counts.get("transformer blocks", 0) == 0
    assert calls.counts["vae"] == 0
    assert calls.counts["text_encoder"] == calls.counts["text_encoder_2"] == len(PROMPTS)
    encoded(pipeline, "flux", guided=True)  # the prompts, and one with its null once more
    assert calls.counts["text_encoder_2"] == len(PROMPTS) + len(PROMPTS) + 2
    assert torch.equal(torch.get_rng_state(), state)


def test_the_pipeline_is_as_it_was_also_after_an_error():
    pipeline = pipeline_of("pixart")
    before = dict(vars(pipeline)), dict(vars(pipeline.transformer)), pipeline.scheduler.step
    with pytest.raises(ValueError, match="Invalid sample size"):
        encoded(pipeline, "pixart", use_resolution_binning=True)
    encoded(pipeline, "pixart")
    now = dict(vars(pipeline)), dict(vars(pipeline.transformer)), pipeline.scheduler.step
    assert now == before


def test_prompts_too_long_are_counted_once_for_each_encoder():
    long = "a very small red cat on the blue moon " * 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoded(pipeline_of("flux"), "flux", [long, "a cat", long], max_sequence_length=17)
    told = [str(w.message) for w in caught if "not heard" in str(w.message)]
    assert len(told) == 2
    assert "2 of 3 prompts have more than the 16 tokens that tokenizer lets through" in told[0]
    assert "2 of 3 prompts have more than the 17 tokens that tokenizer_2 lets through" in told[1]


def test_guidance_that_a_model_does_not_have_is_refused():
    pipeline = pipeline_of("sd3")
    pipeline.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(ValueError, match=r"1 branch.*guidance_scale <= 1"):
        encoded(pipeline, "sd3", guided=True, guidance_scale=1.0)


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="no prompts"):
        encoded(pipeline_of("sd3"), "sd3", [])


def test_texts_of_other_lengths_are_padded_where_a_mask_tells():
    texts = [{"text": torch.ones(1, n, 2), "mask": torch.ones(1, n).long()} for n in (3, 5)]
    joined = join(texts)
    assert joined["text"].shape == (2, 5, 2)
    assert joined["mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    with pytest.raises(ValueError, match="length of text"):
        join([{"text": each["text"]} for each in texts])


class TestOnDisk:
    @pytest.fixture
    def pipeline(self) -> DiffusionPipeline:
        return pipeline_of("sd3")

    def encode(self, pipeline, folder, prompts=PROMPTS, **options) -> Encoded:
        family = conditional_family(pipeline.transformer)
        settings = {"guided": True, **options_of("sd3"), **options}
        return encode_once(folder, pipeline, family, prompts, **settings)

    @pytest.mark.parametrize("kind", SIZES)
    def test_what_is_found_is_what_was_encoded(self, kind, tmp_path):
        pipeline = pipeline_of(kind)
        family = conditional_family(pipeline.transformer)
        settings = {"guided": True, **options_of(kind)}
        fresh = encode(pipeline, family, PROMPTS, **settings)
        encode_once(tmp_path, pipeline, family, PROMPTS, **settings)
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        calls = Calls(pipeline)
        found = encode_once(tmp_path, pipeline, family, PROMPTS, **settings)
        assert not any(calls.counts.values())
        assert found.latents_shape == fresh.latents_shape
        assert found.condition.keys() == fresh.condition.keys()
        assert all(torch.equal(found.condition[n], x) for n, x in fresh.condition.items())
        noise = torch.randn(2, *found.latents_shape)
        drawn = [drawn_by_us(pipeline, each, noise, 3.0) for each in (found, fresh)]
        assert torch.allclose(*drawn, atol=1e-5)

    def test_prompts_settings_and_weights_of_text_encoders_are_told_apart(self, pipeline, tmp_path):
        self.encode(pipeline, tmp_path)
        self.encode(pipeline, tmp_path, PROMPTS[::-1])
        self.encode(pipeline, tmp_path, guided=False)
        self.encode(pipeline, tmp_path, height=16)
        other = copy.deepcopy(pipeline)
        other.transformer.proj_out.weight.data += 1
        self.encode(other, tmp_path)  # which changes nothing
        next(other.text_encoder_3.parameters()).data[0] += 1
        self.encode(other, tmp_path)
        assert len(list(tmp_path.iterdir())) == 5

    def test_images_are_told_apart_by_their_numbers(self, pipeline):
        one, other = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
        other[0, 1, 30, 30] = 1
        names = [digest(pipeline, PROMPTS, {"image": x}) for x in (one, one.clone(), other)]
        assert names[0] == names[1] != names[2]

    def test_a_damaged_file_is_made_again(self, pipeline, tmp_path):
        expected = self.encode(pipeline, tmp_path)
        [path] = tmp_path.iterdir()
        path.write_bytes(path.read_bytes()[:-7])
        found = self.encode(pipeline, tmp_path)
        assert all(torch.equal(found.condition[n], x) for n, x in expected.condition.items())
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", SIZES)
def test_in_half_precision_a_transformer_is_told_what_the_pipeline_tells_it(kind):
    pipeline = pipeline_of(kind).to(torch.bfloat16)
    family = conditional_family(pipeline.transformer)
    settings = {**options_of(kind), "num_inference_steps": 7}
    off = guidance(pipeline, NO_GUIDANCE)
    [expected] = first_calls(pipeline, lambda: pipeline(prompt="a cat", **off, **settings))
    found = encode(pipeline, family, ["a cat"], guided=False, **settings)
    latents = family.heard(expected)[0]
    scheduler = found.scheduler
    batch = Batch(latents, scheduler.timesteps[:1], found.condition, torch.zeros(1))
    like = next(pipeline.transformer.parameters())
    [given] = first_calls(pipeline, lambda: family.predict(pipeline.transformer, batch.like(like)))
    for name, x in expected.items():
        if isinstance(x, torch.Tensor) and not name.endswith("attention_mask"):
            assert torch.equal(given[name].to(x.dtype), x), name
            # Where dtypes differ, the model itself rounds.
            assert given[name].dtype == x.dtype or name in ("guidance", "timestep", "t"), name


def first_calls(pipeline, run) -> list[dict]:
    with calls_before_first_step(pipeline) as calls, suppress(BeforeFirstStep):
        run()
    return calls


def test_positions_are_not_rounded_with_the_weights():
    ids, angles = torch.arange(600.0).view(1, 200, 3), torch.rand(1, 2, 5, 8)
    condition = {"img_ids": ids, "image_rotary_emb": angles, "encoder_hidden_states": angles}
    batch = Batch(torch.rand(1, 4), torch.zeros(1), condition, torch.zeros(1))
    cast = batch.like(torch.ones(1, dtype=torch.bfloat16)).condition
    assert torch.equal(cast["img_ids"], ids)
    assert torch.equal(cast["image_rotary_emb"], angles)
    assert cast["encoder_hidden_states"].dtype == torch.bfloat16


def test_the_image_that_kontext_is_told_stays_beside_the_latents():
    pipeline, kind = pipeline_of("kontext"), "kontext"
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(5))
    settings = {**options_of(kind), "image": image, "guidance_scale": 3.5}
    seen, expected = drawn_by_pipeline(pipeline, **settings)
    found = encoded(pipeline, kind, image=image, guidance_scale=3.5)
    own = found.latents_shape[0]
    assert found.condition["image_latents"].shape[1] == seen.shape[1] - own > 0
    drawn = drawn_by_us(pipeline, found, seen[:, :own], 1.0)
    assert torch.allclose(drawn, expected, rtol=1e-5, atol=1e-5)
    other = encoded(pipeline, kind, image=1 - image, guidance_scale=3.5)
    unlike = drawn_by_us(pipeline, other, seen[:, :own], 1.0)
    assert not torch.allclose(unlike, expected, rtol=1e-2, atol=1e-3)
