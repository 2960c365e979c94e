"""results.json of one, two and three processes, interrupted and damaged or not: the same bytes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = """
import os
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import conftest
from lightning_project import Project, evaluation, pruning, trainer
from ditprune.distributed import leave_group
from toy_prompts import Lengths, PromptedData
root, count = Path({root!r}), int(os.environ["WORLD_SIZE"])


def validate(folder, num_samples, chunk_size, project=Project):
    metrics = {{"metrics": []}} if num_samples == 1 else {{}}
    measured = evaluation(
        num_samples=num_samples,
        chunk_size=chunk_size,
        seeds=[0, 5],
        prompt_metrics=[Lengths()],
        **metrics,
    )
    several = {{"strategy": "ddp", "devices": count}} if count > 1 else {{"devices": 1}}
    run = trainer(folder, [*pruning(), measured], limit_val_batches=1, **several)
    data = PromptedData(conftest.scheduler.__wrapped__())
    run.validate(project(conftest.tiny_dit.__wrapped__()), datamodule=data, verbose=False)
"""

EVERYTHING = (
    SETUP
    + """
for num_samples in (1, 7, 10):
    for chunk_size in (1, 4):
        validate(root / f"{{num_samples}}-{{chunk_size}}" / str(count), num_samples, chunk_size)
leave_group()
"""
)

KILLED = (
    SETUP
    + """
class Killed(Project):
    num_chunks = 0

    def sample(self, condition, generators):
        Killed.num_chunks += 1
        if Killed.num_chunks > 2:
            os._exit(9)
        return super().sample(condition, generators)


validate(root / "10-4" / "resumed", 10, 4, Killed)
"""
)

RESUMED = (
    SETUP
    + """
validate(root / "10-4" / "resumed", 10, 4)
leave_group()
"""
)

IMPATIENT = """
import os
import sys
from datetime import timedelta
import time
import torch.distributed as dist
from ditprune.distributed import on_first_rank
from ditprune.patience import explaining_timeouts

rank = int(os.environ["RANK"])
dist.init_process_group("gloo", timeout=timedelta(seconds=2))
try:
    with explaining_timeouts():
        on_first_rank(lambda: time.sleep(8))
except ValueError as error:
    print(error)
    os._exit(3)
os._exit(0)
"""


def run_processes(script: str, folder: Path, count: int) -> list[subprocess.Popen[str]]:
    path = folder / "script.py"
    path.write_text(script)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # One process alone gets more threads than each of several, unless the variable says so.
    environment = {name: v for name, v in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    processes = []
    for rank in range(count):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(path)],
                cwd=folder,
                env={**environment, **(own if count > 1 else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    outs = [process.communicate(timeout=900)[0] for process in processes]
    return [(process.returncode, out) for process, out in zip(processes, outs, strict=True)]


def demand_success(script: str, folder: Path, count: int) -> None:
    for code, out in finish(run_processes(script, folder, count)):
        assert code == 0, out[-3000:]


@pytest.mark.slow
def test_results_are_the_same_bytes_for_any_number_of_processes_after_kill_and_damage(tmp_path):
    fill = {"tests": str(Path(__file__).parent), "root": str(tmp_path)}
    for count in (1, 2, 3):
        demand_success(EVERYTHING.format(**fill), tmp_path, count)
    for case in tmp_path.glob("*-*"):
        results = {path.parent.name: path.read_bytes() for path in case.glob("*/results.json")}
        assert set(results) == {"1", "2", "3"}
        assert len(set(results.values())) == 1, case.name
        num_images = {len(list((case / n).glob("samples/*/*/images/*.png"))) for n in results}
        assert num_images == {2 * 2 * int(case.name.split("-")[0])}  # two models, two seeds

    codes = []
    for process in run_processes(KILLED.format(**fill), tmp_path, 2):
        try:
            codes.append(process.wait(timeout=120))
        except subprocess.TimeoutExpired:  # it waits for the other, which is gone
            process.kill()
            codes.append(process.wait())
    assert 9 in codes
    resumed = tmp_path / "10-4" / "resumed"
    assert not (resumed / "results.json").exists()
    demand_success(RESUMED.format(**fill), tmp_path, 3)
    expected = (tmp_path / "10-4" / "1" / "results.json").read_bytes()
    assert (resumed / "results.json").read_bytes() == expected

    (resumed / "results.json").unlink()
    shards = sorted(resumed.glob("samples/*/*/*.safetensors"))
    shards[1].write_bytes(shards[1].read_bytes()[:-8])
    sorted(resumed.glob("samples/*/*/images/*.png"))[-1].unlink()
    demand_success(RESUMED.format(**fill), tmp_path, 2)
    assert (resumed / "results.json").read_bytes() == expected


@pytest.mark.slow
def test_a_process_that_waited_too_long_for_the_first_says_what_to_do(tmp_path):
    waiting = finish(run_processes(IMPATIENT, tmp_path, 2))[1]
    assert waiting[0] == 3, waiting[1][-3000:]
    assert "longer timeout, as in DDPStrategy(timeout=timedelta(hours=4))" in waiting[1]
