"""Several CPU processes: the same masks, weights and numbers as one, and no gradient buckets."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
from ditprune.distributed import leave_group
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
leave_group()
"""

PRUNE = """
import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
import torch
import torch.distributed as dist
sys.path.insert(0, {tests!r})
import conftest
import test_study
import ditprune
from ditprune.distributed import leave_group
from ditprune.families import DiT
from ditprune.importance import TrajectoryImportance
from ditprune.repair import KroneckerADMM
from ditprune.saved_stats import fingerprint
from ditprune.study import Bench, Study, run

rank, count, root = int(sys.argv[1]), int(sys.argv[2]), Path({root!r})
if count > 1:
    torch.set_num_threads(1)  # as Lightning does
    place = f"file://{{root}}/rendezvous-{{count}}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=count)
model, scheduler = conftest.tiny_dit.__wrapped__(), conftest.scheduler.__wrapped__()
batches = conftest.split(conftest.calibration.__wrapped__(), 5)


def weights(model):
    return [int(fingerprint(p.detach()), 16) for p in model.parameters()]


recipes = {{name: test_study.METHODS[name] for name in ("least-squares", "dense-goal")}}
recipes["best"] = replace(
    test_study.BEST,
    repair=KroneckerADMM(max_iterations=3, num_refinements=3),
    importance=TrajectoryImportance(num_trajectories=40, num_steps=2),  # in three chunks
)
results = {{}}
for name, recipe in recipes.items():
    pruned = copy.deepcopy(model)
    outcome = ditprune.prune(pruned, batches, family=DiT(), recipe=recipe, scheduler=scheduler)
    results[name] = [outcome.masks.hash(), weights(pruned)]
del recipes["dense-goal"]
folder = root / str(count)
measure = lambda: {{"weights": weights(model)}}
bench = Bench(model, DiT(), scheduler, lambda seed: batches, measure, "", folder)
for result in run(Study(recipes, (0.6,), seeds=(0,)), bench):
    results["study of " + result.method] = [result.mask_hash, result.metrics["weights"]]
(root / f"result-{{count}}-{{rank}}.json").write_text(json.dumps(results))
leave_group()
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


def run_processes(script: Path, count: int) -> None:
    ranks = [[sys.executable, str(script), str(rank), str(count)] for rank in range(count)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda command: run_script(command, script.parent), ranks))


@pytest.mark.slow
def test_every_way_to_prune_gives_the_masks_and_weights_of_one_process_to_the_bit(tmp_path):
    script = tmp_path / "prune.py"
    script.write_text(PRUNE.format(tests=str(Path(__file__).parent), root=str(tmp_path)))
    for count in (1, 2, 3):
        run_processes(script, count)
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("result-*.json")}
    assert len(results) == 6
    alone = results["result-1-0"]
    assert len({masks for masks, _ in alone.values()}) == len(alone) == 5
    for name, expected in alone.items():
        different = [process for process, found in results.items() if found[name] != expected]
        assert different == [], f"{name} differs in {different}"


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
