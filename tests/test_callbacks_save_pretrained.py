import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from lightning_project import Data, Project, trainer
from safetensors.torch import load_file

from ditprune.callbacks import SavePretrained


def test_a_training_run_leaves_what_diffusers_loads(tiny_dit, scheduler, tmp_path):
    project = Project(tiny_dit)
    project.scheduler = scheduler
    project.head = torch.nn.Linear(2, 2)
    saving = SavePretrained(str(tmp_path / "out"), ["transformer", "scheduler", "head"])
    trainer(tmp_path, [saving]).fit(project, datamodule=Data(scheduler))
    loaded = DiTTransformer2DModel.from_pretrained(
        tmp_path / "out" / "transformer", low_cpu_mem_usage=False
    )
    assert torch.equal(loaded.proj_out_2.weight, tiny_dit.proj_out_2.weight)
    assert DDIMScheduler.from_pretrained(tmp_path / "out" / "scheduler").config.beta_schedule
    head = load_file(tmp_path / "out" / "head.safetensors")
    assert torch.equal(head["weight"], project.head.weight)
