import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_model

from ditprune.datamodules import ShapesDataModule
from ditprune.evaluation import SamplingPlan, draw_samples
from ditprune.lit import DenoiserModule, PipelineModule
from ditprune.metrics import AttributeAccuracy, DigitsClassifier
from ditprune.zoo import load_pretrained
from ditprune.zoo.digits import DigitClassifier, load_split
from ditprune.zoo.pretrained import ZOO, zoo_names
from ditprune.zoo.shapes import captions


def test_everyone_gets_the_same_split_with_all_classes_in_both_parts():
    train, held_out = load_split()
    assert (len(train.images), len(held_out.images)) == (1437, 360)
    assert held_out.labels.bincount().min() >= 33
    assert train.images.min() == -1
    assert train.images.max() == 1
    digest = hashlib.sha256(train.labels.numpy().tobytes()).hexdigest()
    assert digest == hashlib.sha256(load_split().train.labels.numpy().tobytes()).hexdigest()


def test_the_classifier_reads_held_out_digits():
    classifier = DigitClassifier().eval()
    load_model(classifier, ZOO / "digits-classifier" / "classifier.safetensors")
    images, labels = load_split().held_out
    with torch.no_grad():
        assert (classifier(images).argmax(1) == labels).float().mean() >= 0.97


@pytest.mark.slow
def test_the_dense_model_draws_the_digit_that_is_asked_for(tmp_path):
    module = DenoiserModule.from_pretrained("digits-dit").eval()
    plan = SamplingPlan(torch.arange(1000) % 10)
    drawn = draw_samples(module, plan, DigitsClassifier(), tmp_path, "dense")[0]
    read = drawn.features.logits.argmax(1)
    assert (read == plan.conditions).float().mean() >= 0.95


@pytest.mark.slow
def test_shapes_flux_draws_what_captions_say_that_it_was_not_trained_on(tmp_path):
    """With the settings of its configuration."""
    config = Path(__file__).parent.parent / "configs" / "shapes_flux.yaml"
    module = PipelineModule.from_pretrained(
        **yaml.safe_load(config.read_text())["model"]["init_args"]
    )
    module.eval().trainer = SimpleNamespace(datamodule=ShapesDataModule())
    data = module.trainer.datamodule
    plan = SamplingPlan(data.evaluation_conditions(500), (0,), 50, data.evaluation_prompts(500))
    assert set(plan.prompts) <= set(captions(held_out=True))
    accuracy = AttributeAccuracy()
    drawn = draw_samples(module, plan, None, tmp_path, "dense", [accuracy])[0]
    assert drawn.values()[accuracy.name].mean() >= 85


def test_the_zoo_is_found_by_name():
    assert zoo_names() == ["digits-dit", "shapes-flux"]
    assert load_pretrained("digits-dit").vae is None


def test_a_model_that_cannot_be_loaded_is_named_with_what_could(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)cannot load the model '.*nothing'.*digits-dit"):
        load_pretrained(str(tmp_path / "nothing"))


def test_shapes_flux_names_tokenizers_as_transformers_4_and_5_do():
    """transformers 5 writes names and a list that transformers 4 cannot read."""
    folder = ZOO / "shapes-flux"
    parts = json.loads((folder / "model_index.json").read_text())
    for name in ("tokenizer", "tokenizer_2"):
        assert parts[name][1].endswith("TokenizerFast")
        config = json.loads((folder / name / "tokenizer_config.json").read_text())
        assert not isinstance(config.get("extra_special_tokens"), list)
