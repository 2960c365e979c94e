"""Every YAML in configs/ runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_pipelines
import yaml

from ditprune.cli import main

PIPELINES = {
    "flux": tiny_pipelines.flux,
    "pixart": tiny_pipelines.pixart,
    "sd3": tiny_pipelines.sd3,
}
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_is_the_command(path):
    verb = {"train": "fit", "study": "study"}.get(path.stem.split("_")[0], "prune")
    assert path.read_text().splitlines()[0] == f"# ditprune {verb} --config configs/{path.name}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch, tiny_dit, scheduler):
    """With the smallest numbers, most on the smallest model, and output below tmp_path."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(path.read_text())
    for callback in content["trainer"]["callbacks"]:
        if callback["class_path"].endswith("EvaluationCallback"):
            callback["init_args"].update(num_samples=12, chunk_size=6)
        if "importance" in callback.get("init_args", {}):
            callback["init_args"]["importance"]["init_args"].update(num_trajectories=2, num_steps=2)
        if callback["class_path"].endswith("StudyCallback"):
            shrink_study(callback["init_args"])
    if path.stem.startswith("train_"):
        content["trainer"].update(max_steps=2, max_epochs=1)
    elif path.stem.split("_")[0] in PIPELINES:
        shrink_pipeline(content, tmp_path, PIPELINES[path.stem.split("_")[0]])
    else:
        content["model"]["init_args"]["num_inference_steps"] = 2
        if path.stem != "digits":  # which runs on the model that it names
            tiny_dit.save_pretrained(tmp_path / "tiny" / "transformer")
            scheduler.save_pretrained(tmp_path / "tiny" / "scheduler")
            content["model"]["init_args"]["source"] = str(tmp_path / "tiny")
        content["data"].setdefault("init_args", {})["num_calibration_samples"] = 8
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    verb = path.read_text().split()[2]
    main([verb, "--config", "config.yaml", "--trainer.limit_val_batches", "1"])
    assert list(tmp_path.rglob("*.safetensors"))


def shrink_study(options: dict) -> None:
    options.update(sparsities=[0.5], patterns=[], calibration_seeds=[0])
    for recipe in options["methods"].values():
        if "importance" in recipe:
            recipe["importance"]["init_args"].update(num_trajectories=2, num_steps=2)


def shrink_pipeline(content: dict, folder: Path, pipeline: Callable) -> None:
    pipeline().save_pretrained(folder / "tiny")
    (folder / "prompts.txt").write_text("a cat\na dog\nblue moon\n")
    options = content["model"]["init_args"]
    options.update(source=str(folder / "tiny"), num_inference_steps=2, height=16, width=16)
    if "pixart" in pipeline.__name__:
        options["options"] = {"use_resolution_binning": False}  # which knows no such small images
    content["data"]["init_args"].update(prompts="prompts.txt", num_calibration_samples=4)
    for callback in content["trainer"]["callbacks"]:
        if callback["class_path"].endswith("EvaluationCallback"):
            callback["init_args"]["extractor"] = "lightning_project.Rows"
