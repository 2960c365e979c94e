import copy

import lightning as L
import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline
from torch import nn

from ditprune.families import DiT
from ditprune.families.known import family_of
from ditprune.find import demand_family, find_transformer


class Project(L.LightningModule):
    def __init__(self, **parts) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.gates = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))])


class OwnTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedder = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([Block(), Block()])


class Wrapper(nn.Module):
    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model


def vae() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=1)


def test_a_class_that_diffusers_knows_is_found_beside_a_decoder(tiny_dit):
    found = find_transformer(Project(vae=vae(), denoiser=tiny_dit))
    assert found.model is tiny_dit
    assert found.path == "denoiser"
    assert isinstance(family_of(found.model), DiT)


def test_a_pipeline_that_is_a_plain_attribute_is_looked_into(tiny_dit, scheduler):
    project = Project(pipeline=DiTPipeline(tiny_dit, vae(), scheduler))
    assert not list(project.named_modules())[1:]
    found = find_transformer(project)
    assert found.model is tiny_dit
    assert found.path == "pipeline.transformer"
    assert find_transformer(project, "pipeline.transformer").model is tiny_dit


def test_what_is_reached_by_two_paths_is_one_network(tiny_dit, scheduler):
    pipeline = DiTPipeline(tiny_dit, vae(), scheduler)
    assert find_transformer(Project(net=tiny_dit, pipeline=pipeline)).path == "net"


@pytest.mark.parametrize("name", ["model_ema", "ema", "ema_model", "teacher"])
def test_averaged_copies_are_not_meant(tiny_dit, name):
    copies = {name: Wrapper(copy.deepcopy(tiny_dit))}
    found = find_transformer(Project(**copies, model=Wrapper(tiny_dit)))
    assert found.path == "model.diffusion_model"


def test_a_name_with_ema_inside_a_word_is_no_copy(tiny_dit):
    assert find_transformer(Project(schema_net=tiny_dit)).path == "schema_net"


def test_a_transformer_of_your_own_is_found_by_its_repeated_blocks():
    own = OwnTransformer()
    found = find_transformer(Project(model=Wrapper(own), head=nn.Linear(4, 4)))
    assert found.model is own
    assert found.path == "model.diffusion_model"


def test_compiled_modules_are_unwrapped(tiny_dit):
    for path in (None, "net"):
        found = find_transformer(Project(net=torch.compile(tiny_dit)), path)
        assert found.model is tiny_dit


def test_two_that_may_be_meant_are_listed_with_their_sizes(tiny_dit):
    project = Project(transformer=tiny_dit, transformer_2=copy.deepcopy(tiny_dit))
    with pytest.raises(ValueError, match=r"holds 2 transformers(.|\n)*transformer_2 \(DiT\w+, 0\."):
        find_transformer(project)
    assert find_transformer(project, "transformer_2").path == "transformer_2"


def test_none_is_an_error_that_tells_what_to_do():
    with pytest.raises(ValueError, match=r"holds 0 transformers; say which to prune by module="):
        find_transformer(Project(head=nn.Linear(2, 2)))


def test_a_path_that_leads_nowhere_lists_what_may_be_meant(tiny_dit):
    project = Project(denoiser=tiny_dit, head=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no module 'unet'(.|\n)*denoiser \(DiT") as error:
        find_transformer(project, "unet")
    assert "head" not in str(error.value)


class Adapter(nn.Module):
    """What PEFT puts in a layer's place."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features)})


def test_unfused_adapters_are_refused_with_the_way_out(tiny_dit):
    block = tiny_dit.transformer_blocks[1]
    block.attn1.to_q = Adapter(block.attn1.to_q)
    with pytest.raises(ValueError, match=r"adapters on 1 layers, transformer_blocks\.1\.attn1"):
        find_transformer(Project(transformer=tiny_dit))
    block.attn1.to_q = block.attn1.to_q.base_layer
    assert find_transformer(Project(transformer=tiny_dit)).model is tiny_dit


@pytest.mark.parametrize("fused", [False, True])
def test_the_adapters_of_peft_are_seen_where_it_is_installed(tiny_dit, fused):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny_dit, peft.LoraConfig(r=2, target_modules=["to_q"]))
    if fused:
        assert find_transformer(Project(net=adapted.merge_and_unload())).model is tiny_dit
    else:
        with pytest.raises(ValueError, match="LoRA adapters on 2 layers"):
            find_transformer(Project(net=adapted))


def test_a_class_that_no_family_knows_is_an_error_with_a_guess_to_copy():
    found = find_transformer(Project(model=OwnTransformer()))
    with pytest.raises(ValueError, match=r"no family knows model \(Own(.|\n)*Table\((.|\n)*up"):
        demand_family(found)
