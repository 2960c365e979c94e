"""Every project in examples/ runs, and prunes what it says."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from ditprune.metrics import AttributeAccuracy
from ditprune.zoo.shapes import attributes, captions, parse

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](str(folder))


def zeros(module: nn.Module) -> float:
    weight = module.weight
    return (weight == 0).float().mean().item()


def test_every_example_has_a_test_and_says_how_to_run_it():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {
        "transformer_attribute",
        "pipeline_attribute",
        "own_transformer_with_ema",
        "larger_than_memory",
    }
    for name in names:
        assert f"python examples/{name}.py" in (EXAMPLES / f"{name}.py").read_text()


def test_a_transformer_under_any_name_is_found_and_saved(tmp_path):
    trainer = run("transformer_attribute", tmp_path)
    assert zeros(trainer.lightning_module.dit.transformer_blocks[0].attn1.to_q) > 0.3
    assert json.loads((tmp_path / "report.json").read_text())["target_sparsity"] == 0.5
    assert "val/loss" in trainer.callback_metrics
    assert (tmp_path / "dit" / "config.json").is_file()


def test_a_transformer_inside_a_pipeline_is_pruned_and_draws(tmp_path):
    (images,) = run("pipeline_attribute", tmp_path)
    assert images.shape == (10, 1, 8, 8)
    assert images.isfinite().all()
    assert "| 70.00% |" in (tmp_path / "report.md").read_text()


def test_a_network_in_a_wrapper_is_pruned_and_its_average_is_not(tmp_path):
    project = run("own_transformer_with_ema", tmp_path)
    for block in project.model.diffusion_model.blocks:
        assert zeros(block.up) == zeros(block.down) == pytest.approx(0.5)
        assert zeros(block.attention.out_proj) == 0
    assert all(zeros(block.up) == 0 for block in project.model_ema.diffusion_model.blocks)


def test_a_model_on_disk_is_pruned_with_samples_that_were_made_without_it(tmp_path):
    pipeline = run("larger_than_memory", tmp_path)
    for block in pipeline.transformer.single_transformer_blocks:
        assert zeros(block.proj_out) == pytest.approx(0.6, abs=1e-3)
    pipeline.set_progress_bar_config(disable=True)
    texts = captions(held_out=True)[:8]
    images = pipeline(
        texts,
        height=64,
        width=64,
        num_inference_steps=16,
        max_sequence_length=16,
        output_type="pt",
    ).images
    pixels = (images * 255).round().byte()
    read = AttributeAccuracy().classifier.read(pixels)
    said = torch.tensor([attributes(parse(text)) for text in texts])
    layouts = read["layout"].argmax(1) == said[:, 0]
    assert layouts.float().mean() > 0.8  # noise has none
