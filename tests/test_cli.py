import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from ditprune.cli import main
from ditprune.zoo.pretrained import ZOO

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write the shipped configuration, changed, small, and with its run folder in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def write(change=lambda config: None) -> str:
        content = yaml.safe_load(CONFIG.read_text())
        evaluation = content["trainer"]["callbacks"][2]["init_args"]
        evaluation.update(num_samples=12, chunk_size=6, seeds=[0])
        content["model"]["init_args"]["num_inference_steps"] = 2
        content["data"]["init_args"]["num_calibration_samples"] = 4
        content["trainer"]["limit_val_batches"] = 1
        change(content)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


def message_of(*arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    return str(exit_.value)


def granularity_of(content) -> dict:
    return content["trainer"]["callbacks"][1]["init_args"]


@pytest.mark.parametrize("verb", ["prune", "validate", "fit"])
def test_every_verb_works_with_the_same_file(config, tmp_path, verb):
    main([verb, "--config", config()])
    run = tmp_path / "runs" / "digits" / "dit-pruning"
    assert {"report.md", "masks.safetensors", "transformer", "config.yaml"} <= {
        path.name for path in run.iterdir()
    }
    table = (run / "report.md").read_text()
    assert "50.00%" in table
    assert "| precision" in table
    assert "Not measured" not in table


def test_a_dry_run_prints_the_plan_and_touches_nothing(config, tmp_path, capsys):
    main(["prune", "--config", config(), "--dry-run"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "transformer_blocks.5.ff.net.2" in printed
    assert "128 x 512" in printed
    assert "884,736 of 1,769,472 weights go (50.00%); whole model: 41.73%" in printed
    assert not (tmp_path / "runs").exists()


def test_an_impossible_sparsity_is_a_paragraph(config):
    path = config(lambda content: granularity_of(content).update(sparsity=1.5))
    message = message_of("prune", "--config", path)
    assert message == ("ditprune: sparsity must be in [0, 1), the fraction to remove; got 1.5")


def test_an_empty_calibration_set_is_a_paragraph(config):
    path = config(lambda c: c["data"]["init_args"].update(num_calibration_samples=0))
    assert "the calibration set is empty" in message_of("prune", "--config", path)


def test_a_damaged_model_is_a_paragraph_that_names_the_folder(config, tmp_path):
    shutil.copytree(ZOO / "digits-dit", tmp_path / "model")
    weights = next((tmp_path / "model" / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    path = config(lambda c: c["model"]["init_args"].update(source=str(tmp_path / "model")))
    message = message_of("prune", "--config", path)
    assert f"cannot load the model '{tmp_path / 'model'}'" in message
    assert "digits-dit" in message


def test_an_unknown_class_path_is_named_before_anything_runs(config, capsys):
    def misspell(content):
        content["trainer"]["callbacks"][0]["init_args"]["saliency"]["class_path"] = "Wandaa"

    assert message_of("prune", "--config", config(misspell)) == "2"
    assert "Wandaa" in capsys.readouterr().err


def test_help_lists_the_verbs(capsys):
    assert message_of("--help") == "0"
    listed = capsys.readouterr().out
    verbs = ("prune", "study", "validate", "fit", "score", "convert", "statistics", "prune-folder")
    assert all(verb in listed for verb in verbs)


def test_print_config_shows_everything_that_runs(config, capsys):
    assert message_of("prune", "--config", config(), "--print_config") == "0"
    printed = yaml.safe_load(capsys.readouterr().out)
    callbacks = printed["trainer"]["callbacks"]
    assert callbacks[0]["init_args"]["num_timestep_bins"] == 10
    assert callbacks[1]["init_args"]["sparsity"] == 0.5
    assert callbacks[1]["init_args"]["budget"]["class_path"] == "ditprune.budget.Uniform"


def test_errors_that_are_not_ours_keep_their_traceback(config, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("lightning.pytorch.Trainer.validate", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["prune", "--config", config()])
    assert "ditprune.cli" in sys.modules


def test_a_validation_that_does_not_run_is_no_silent_success(config):
    path = config(lambda content: content["trainer"].update(limit_val_batches=0))
    assert "nothing was pruned" in message_of("prune", "--config", path)


def test_missing_feature_weights_are_found_before_the_calibration(config, tmp_path, capsys):
    def misplace(content):
        content["trainer"]["callbacks"][2]["init_args"]["extractor"] = {
            "class_path": "ditprune.metrics.DigitsClassifier",
            "init_args": {"weights": str(tmp_path / "nothing.safetensors")},
        }

    message = message_of("prune", "--config", config(misplace))
    assert "cannot load the digits classifier" in message
    assert "calibrating" not in capsys.readouterr().out


def test_equal_configurations_give_equal_reports_whatever_the_calibration_batch(config, tmp_path):
    reports = []
    for size in (16, 16, 3):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        change = {"calibration_batch_size": size}
        path = config(lambda content, change=change: content["data"]["init_args"].update(change))
        main(["prune", "--config", path])
        report = json.loads(
            (tmp_path / "runs" / "digits" / "dit-pruning" / "report.json").read_text()
        )
        del report["cost"]
        reports.append(report)
    assert reports[0] == reports[1] == reports[2]


def test_a_run_folder_that_is_in_the_way_is_a_paragraph(config, tmp_path):
    (tmp_path / "runs").touch()
    for verb in ("prune", "validate"):
        message = message_of(verb, "--config", config())
        assert message.startswith("ditprune: cannot write to the folder runs/digits")


def test_a_study_writes_its_tables_and_goes_on_where_it_was(
    tmp_path, monkeypatch, tiny_dit, scheduler
):
    monkeypatch.chdir(tmp_path)
    tiny_dit.save_pretrained(tmp_path / "tiny" / "transformer")
    scheduler.save_pretrained(tmp_path / "tiny" / "scheduler")
    content = yaml.safe_load((CONFIG.parent / "study_digits.yaml").read_text())
    evaluation, study = (c["init_args"] for c in content["trainer"]["callbacks"])
    evaluation.update(num_samples=12, chunk_size=6)
    methods = {name: study["methods"][name] for name in ("magnitude", "wanda")}
    study.update(
        sparsities=[0.5], patterns=study["patterns"][:1], calibration_seeds=[0, 1], methods=methods
    )
    content["model"]["init_args"].update(source=str(tmp_path / "tiny"), num_inference_steps=2)
    content["data"]["init_args"]["num_calibration_samples"] = 4
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    main(["study", "--config", "config.yaml"])
    run = tmp_path / "runs" / "digits" / "study"
    table = (run / "study.md").read_text()
    assert "| dense |" in table
    assert "| wanda | 50.00% |" in table
    assert "## 2:4" in table
    assert (run / "fid.png").stat().st_size > 1000
    assert len(list((run / "cells").iterdir())) == 8
    main(["study", "--config", "config.yaml"])
    assert (run / "study.md").read_text() == table


def test_a_study_without_its_callback_is_a_paragraph(config):
    assert "a study a StudyCallback" in message_of("study", "--config", config())
