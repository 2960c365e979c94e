"""Every YAML in configs/ runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines
import yaml

from ditprune.cli import main

PIPELINES = {
    "flux": tiny_pipelines.flux,
    "pixart": tiny_pipelines.pixart,
    "sana": tiny_pipelines.sana,
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
        if path.stem.startswith("train_shapes_"):
            shrink_shapes(content, tmp_path)
    elif path.stem == "shapes_flux":  # on the model that it names
        content["model"]["init_args"]["num_inference_steps"] = 2
        content["data"]["init_args"].update(num_evaluation_pictures=12, num_calibration_samples=4)
    elif path.stem.split("_")[0] in PIPELINES:
        shrink_pipeline(content, tmp_path, PIPELINES[path.stem.split("_")[0]])
    elif path.stem == "dit_xl_imagenet256":
        shrink_imagenet(content, tmp_path)
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


def shrink_shapes(content: dict, folder: Path) -> None:
    """A few pictures; on the parts that other recipes of this kind have made."""
    content["data"]["init_args"].update(num_training_pictures=24, num_evaluation_pictures=8)
    content["trainer"].update(val_check_interval=1, default_root_dir=str(folder))
    for part in (content["model"].get("init_args", {}), content["data"]["init_args"]):
        if "vae" in part:
            part["vae"] = "shapes-flux/vae"
    for callback in content["trainer"]["callbacks"]:
        if callback["class_path"].endswith("SavePretrained"):
            callback["init_args"]["folder"] = str(folder / "made")


def shrink_study(options: dict) -> None:
    options.update(sparsities=[0.5], patterns=[], calibration_seeds=[0])
    for recipe in options["methods"].values():
        if "importance" in recipe:
            recipe["importance"]["init_args"].update(num_trajectories=2, num_steps=2)


def shrink_pipeline(content: dict, folder: Path, pipeline: Callable) -> None:
    pipeline().save_pretrained(folder / "tiny")
    (folder / "prompts.txt").write_text("a cat\na dog\nblue moon\n")
    options = content["model"]["init_args"]
    options.update(source=str(folder / "tiny"), num_inference_steps=2, height=32, width=32)
    if special := tiny_pipelines.SPECIAL.get(pipeline.__name__):
        options["options"] = special
    content["data"]["init_args"].update(prompts="prompts.txt", num_calibration_samples=4)
    use_rows(content)


def shrink_imagenet(content: dict, folder: Path) -> None:
    tiny_pipelines.dit().save_pretrained(folder / "tiny")
    images = np.random.default_rng(0).integers(0, 256, [12, 16, 16, 3], np.uint8)
    np.savez(folder / "reference.npz", images)
    content["model"]["init_args"].update(source=str(folder / "tiny"), num_inference_steps=2)
    content["data"]["init_args"].update(num_calibration_samples=4, reference_images="reference.npz")
    use_rows(content)


def use_rows(content: dict) -> None:
    """Look through features that need no network."""
    for callback in content["trainer"]["callbacks"]:
        if callback["class_path"].endswith("EvaluationCallback"):
            callback["init_args"]["extractor"] = "lightning_project.Rows"
