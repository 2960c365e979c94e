"""Every YAML in configs/ runs."""

from collections.abc import Callable
from pathlib import Path

import captioned_folders
import numpy as np
import pytest
import tiny_pipelines
import yaml
from family_contract import TIMESTEPS, randomized
from test_families_flux import TestFlux as Contract

import ditprune
from ditprune.cli import main
from ditprune.families import Batch

PIPELINES = {
    "flux": tiny_pipelines.flux,
    "pixart": tiny_pipelines.pixart,
    "sana": tiny_pipelines.sana,
    "sd3": tiny_pipelines.sd3,
}
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
OF_RUNS = [path for path in CONFIGS if not path.stem.startswith("folder_")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_is_the_command(path):
    verbs = {"train": "fit", "study": "study", "folder": "prune-folder"}
    verb = verbs.get(path.stem.split("_")[0], "prune")
    assert path.read_text().splitlines()[0] == f"# ditprune {verb} --config configs/{path.name}"


@pytest.mark.parametrize("path", OF_RUNS, ids=lambda path: path.stem)
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
            if path.stem == "study_shapes":
                few = {"include": r"^single_transformer_blocks\.0\."}
                callback["init_args"]["family"] = {
                    "class_path": "ditprune.families.Flux",
                    "init_args": few,
                }
    if path.stem.startswith("train_"):
        content["trainer"].update(max_steps=2, max_epochs=1)
        if path.stem.startswith("train_shapes_"):
            shrink_shapes(content, tmp_path)
    elif path.stem in ("shapes_flux", "study_shapes"):  # on the model that they name
        content["model"]["init_args"]["num_inference_steps"] = 2
        content["data"]["init_args"].update(num_evaluation_pictures=12, num_calibration_samples=4)
    elif path.stem.split("_")[0] in PIPELINES:
        shrink_pipeline(content, tmp_path, PIPELINES[path.stem.split("_")[0]])
    elif path.stem.startswith("dit_xl_imagenet256"):
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
    use_tiny_pipeline(content, folder, pipeline)
    options = content["model"]["init_args"]
    options.update(num_inference_steps=2, height=32, width=32)
    if special := tiny_pipelines.SPECIAL.get(pipeline.__name__):
        options["options"] = special
    content["data"]["init_args"].update(num_calibration_samples=4, num_images=12, side=32)
    use_judges_at_hand(content)


def use_tiny_pipeline(content: dict, folder: Path, pipeline: Callable) -> None:
    """And a data set of the same layout as the published one."""
    pipeline().save_pretrained(folder / "tiny")
    content["model"]["init_args"]["source"] = str(folder / "tiny")
    kind, options = content["data"]["class_path"].split(".")[-1], content["data"]["init_args"]
    where = "source" if kind == "CaptionedDataSet" else "folder"
    options[where] = DATA_SETS[kind](folder / "data")


DATA_SETS = {
    "COCO": captioned_folders.coco,
    "MJHQ30K": captioned_folders.mjhq,
    "CaptionedDataSet": captioned_folders.captioned_folder,
}


def shrink_imagenet(content: dict, folder: Path) -> None:
    use_tiny_dit(content, folder)
    content["model"]["init_args"]["num_inference_steps"] = 2
    content["data"]["init_args"].update(num_calibration_samples=4)
    use_judges_at_hand(content)


def use_tiny_dit(content: dict, folder: Path) -> None:
    """And a file of ADM's evaluator: some images, and statistics."""
    tiny_pipelines.dit().save_pretrained(folder / "tiny")
    images = np.random.default_rng(0).integers(0, 256, [12, 16, 16, 3], np.uint8)
    statistics = {"mu": np.zeros(48), "sigma": np.eye(48)}
    spatial = {f"{name}_s": value for name, value in statistics.items()}
    np.savez(folder / "reference.npz", images, **statistics, **spatial)
    content["model"]["init_args"]["source"] = str(folder / "tiny")
    content["data"]["init_args"]["reference_images"] = "reference.npz"


def use_judges_at_hand(content: dict) -> None:
    """Look through features that need no network, and with a CLIP that ships with the package."""
    for callback in content["trainer"]["callbacks"]:
        if callback["class_path"].endswith("EvaluationCallback"):
            options = callback["init_args"]
            options["extractor"] = "lightning_project.SpatialRows"
            options["paired_metrics"] = []
            if "prompt_metrics" in options:
                clip, reward = options["prompt_metrics"]
                clip["init_args"]["weights"] = "shapes-judges/clip"
                reward["class_path"] = "toy_prompts.Lengths"


HUB = [path for path in CONFIGS if path.stem.split("_")[0] in (*PIPELINES, "dit")]


@pytest.mark.parametrize("path", HUB, ids=lambda path: path.stem)
def test_all_that_it_names_is_there_as_it_stands(path, tmp_path, monkeypatch, capsys):
    """With the sizes that it asks for; of hub weights and data sets, with small stand-ins."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(path.read_text())
    kind = path.stem.split("_")[0]
    if kind == "dit":
        use_tiny_dit(content, tmp_path)
    else:
        use_tiny_pipeline(content, tmp_path, PIPELINES[kind])
        content["data"]["init_args"]["num_images"] = 12
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    main(["prune", "--config", "config.yaml", "--dry-run"])
    assert "weights go (50.00%); whole model:" in " ".join(capsys.readouterr().out.split())


def test_a_folder_is_pruned(tmp_path, monkeypatch):
    """FLUX's, as small as can be, with samples from a file."""
    monkeypatch.chdir(tmp_path)
    path = next(path for path in CONFIGS if path.stem == "folder_flux_dev")
    content = yaml.safe_load(path.read_text())
    contract = Contract()
    randomized(contract.build()).save_pretrained(content["source"])
    batch = Batch(contract.latents(), TIMESTEPS, contract.condition(), TIMESTEPS / 1000)
    ditprune.save_batches(content["samples"], [batch])
    main(["prune-folder", "--config", str(path)])
    masks = ditprune.MaskSet.load(Path(content["destination"]) / "masks.safetensors")
    assert masks.sparsity() == pytest.approx(0.5, abs=1e-3)
