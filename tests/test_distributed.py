"""Two CPU processes under DDP: the same masks, the same numbers, no gradient buckets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"

FIT = """
import json
import sys
from pathlib import Path
import lightning as L
sys.path.insert(0, {tests!r})
from conftest import *
from lightning_project import Data, Project, pruning, trainer
from ditprune.zoo import load_pretrained
pretrained = load_pretrained("digits-dit")
callbacks = pruning()
run = trainer({root!r}, callbacks, strategy="ddp", devices=int(sys.argv[1]))
project = Project(pretrained.transformer)
run.fit(project, datamodule=Data(pretrained.scheduler, num_calibration_samples=5))
wrapped = type(run.strategy.model).__name__
result = [wrapped, len(run.optimizers), callbacks[1].masks.hash()]
Path({root!r}, f"result-{{sys.argv[1]}}-{{run.global_rank}}.json").write_text(json.dumps(result))
"""


def run_script(command: list[str], cwd: Path) -> None:
    # Each of several processes gets fewer threads than one alone, unless the variable says so.
    environment = {name: v for name, v in os.environ.items() if name != "OMP_NUM_THREADS"}
    out = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 3])
def test_a_fit_under_ddp_finds_the_masks_of_one_process_and_wraps_nothing(tmp_path, num_processes):
    script = tmp_path / "fit.py"
    script.write_text(FIT.format(tests=str(Path(__file__).parent), root=str(tmp_path)))
    for count in (1, num_processes):
        run_script([sys.executable, str(script), str(count)], tmp_path)
    results = [json.loads(path.read_text()) for path in tmp_path.glob("result-*.json")]
    assert len(results) == 1 + num_processes
    assert all(result == results[0] for result in results)
    assert results[0][:2] == ["Project", 0]


@pytest.mark.slow
def test_the_command_gives_the_same_report_with_two_processes(tmp_path):
    content = yaml.safe_load(CONFIG.read_text())
    content["trainer"]["callbacks"][2]["init_args"].update(num_samples=30, chunk_size=8)
    content["data"]["init_args"]["num_calibration_samples"] = 9
    reports = []
    for devices in (1, 2):
        root = tmp_path / str(devices)
        root.mkdir()
        (root / "config.yaml").write_text(yaml.safe_dump(content))
        command = [sys.executable, "-m", "ditprune.cli", "prune", "--config", "config.yaml"]
        strategy = ["--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
        run_script([*command, "--trainer.devices", str(devices), *strategy], root)
        report = json.loads((root / "runs" / "digits" / "dit-pruning" / "report.json").read_text())
        assert report.pop("cost")["processes"] == str(devices)
        reports.append(report)
    assert reports[0] == reports[1]
