import json
import weakref

import pytest
import test_families_flux
import test_families_pixart
import test_families_sd3
import torch
import yaml
from diffusers import AutoModel
from family_contract import TIMESTEPS, randomized
from safetensors import safe_open
from safetensors.torch import save_file

import ditprune
from ditprune.budget import OWL, SharedThreshold
from ditprune.families import Batch, DiT, Flux
from ditprune.families.known import family_of
from ditprune.folder import Task
from ditprune.granularity import ClusteringAware, Layer, NofM, Row
from ditprune.importance import TrajectoryImportance
from ditprune.masks import MaskSet
from ditprune.paging import Pager
from ditprune.progress import Progress
from ditprune.recipe import Recipe
from ditprune.repair import LeastSquares
from ditprune.saliency import OBS, Energy, Lookahead, SearchedEnergy
from ditprune.shards import read_file
from ditprune.targets import Role

CONTRACTS = {
    "flux": test_families_flux.TestFlux,
    "pixart": test_families_pixart.TestPixArt,
    "sd3": test_families_sd3.TestSD3,
}
SEQUENTIAL = Recipe(Energy(), Layer(), sequential=True)


def saved(model, folder, dtype=torch.float32):
    """Many small shards, so that blocks straddle them."""
    model.to(dtype).save_pretrained(folder, max_shard_size="9KB")
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder


def sample_of(kind):
    contract = CONTRACTS[kind]()
    return Batch(contract.latents(), TIMESTEPS, contract.condition(), TIMESTEPS / 1000)


def in_memory(source, batches, recipe=SEQUENTIAL, dtype=torch.float32, **family):
    """The whole model, pruned as everybody does it."""
    model = AutoModel.from_pretrained(str(source), torch_dtype=dtype)
    for parameter in model.parameters():
        # Mapped from files they begin anywhere, and products round by where they begin.
        parameter.data = parameter.data.clone()
    kind = family.pop("family", None) or family_of(model)
    return model, ditprune.prune(model, batches, family=kind, recipe=recipe)


def demand_equal(folder, found, model, expected, dtype=torch.float32):
    loaded = AutoModel.from_pretrained(str(folder), torch_dtype=dtype)
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert found.masks.hash() == expected.masks.hash()
    assert MaskSet.load(folder / "masks.safetensors").hash() == expected.masks.hash()
    assert list(found.masks.masks) == list(expected.masks.masks)
    assert found.errors == expected.errors


@pytest.fixture
def flux(tmp_path):
    return saved(randomized(test_families_flux.small()), tmp_path / "dense")


@pytest.fixture
def dit(tiny_dit, tmp_path):
    return saved(tiny_dit, tmp_path / "dense")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CONTRACTS)
def test_weights_and_masks_are_those_of_the_whole_model_to_the_bit(kind, dtype, tmp_path):
    source = saved(randomized(CONTRACTS[kind]().build()), tmp_path / "dense", dtype)
    batches = [sample_of(kind)]
    model, expected = in_memory(source, batches, dtype=dtype)
    found = ditprune.prune_folder(source, tmp_path / "pruned", batches, recipe=SEQUENTIAL)
    demand_equal(tmp_path / "pruned", found, model, expected, dtype)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(Energy(), Row(), sequential=True, repair=LeastSquares(correct_bias=True)),
        Recipe(Energy(), Row(), repair=LeastSquares()),
        Recipe(Energy(), ClusteringAware(), budget=OWL(per="layer")),
        Recipe(Energy(), ClusteringAware(0.01), budget=OWL(), sequential=True),
        Recipe(Lookahead(), NofM(2, 4), sequential=True),
        Recipe(OBS(), Layer(), sequential=True),
    ],
    ids=lambda recipe: f"{recipe.saliency}-{recipe.granularity}"[:40],
)
def test_so_are_those_of_recipes_that_repair_or_look_at_all_layers(
    recipe, dit, calibration, tmp_path
):
    model, expected = in_memory(dit, [calibration], recipe)
    found = ditprune.prune_folder(dit, tmp_path / "pruned", [calibration], recipe=recipe)
    demand_equal(tmp_path / "pruned", found, model, expected)


@pytest.mark.parametrize("ignored", [r"\.1\.", r"ff\.net", r"transformer_blocks\.0"])
def test_blocks_and_layers_that_are_left_out_stay_dense(ignored, flux, tmp_path):
    batches, family = [sample_of("flux")], Flux(ignore=ignored)
    model, expected = in_memory(flux, batches, family=family)
    found = ditprune.prune_folder(
        flux, tmp_path / "pruned", batches, recipe=SEQUENTIAL, family=family
    )
    demand_equal(tmp_path / "pruned", found, model, expected)


def test_no_more_than_two_blocks_are_in_memory(flux, tmp_path, monkeypatch):
    """Whoever holds them: storages are counted from the moment they are read until they die."""
    alive, sizes = [], []

    def read_and_watch(*args):
        tensors = read_file(*args)
        alive.extend(weakref.ref(tensor.untyped_storage()) for tensor in tensors.values())
        sizes.append(sum(ref().nbytes() for ref in alive if ref() is not None))
        return tensors

    task = Task.of(flux, [sample_of("flux")], SEQUENTIAL, None, torch.device("cpu"))
    progress = Progress(tmp_path / "pruned", {}, task.blocks)
    monkeypatch.setattr("ditprune.shards.read_file", read_and_watch)
    monkeypatch.setattr("ditprune.folder.read_file", read_and_watch)
    task.prune(progress)
    model = test_families_flux.small()
    blocks = [
        sum(parameter.nbytes for parameter in block.parameters())
        for block in (*model.transformer_blocks, *model.single_transformer_blocks)
    ]
    outside = sum(parameter.nbytes for parameter in model.parameters()) - sum(blocks)
    assert max(sizes) == outside + blocks[0] + blocks[1]


def test_a_block_whose_answers_are_repeated_is_not_read(flux, tmp_path, monkeypatch):
    brought = []

    class Noting(Pager):
        def __init__(self, *args):
            super().__init__(*args)
            brought.append([])

        def bring(self, name):
            if name != self.present:
                brought[-1].append(name)
            super().bring(name)

    monkeypatch.setattr("ditprune.paging.Pager", Noting)
    ditprune.prune_folder(flux, tmp_path / "pruned", [sample_of("flux")], recipe=SEQUENTIAL)
    names = [f"{each}transformer_blocks.{i}" for each in ("", "single_") for i in range(2)]
    exploring, pruning = brought
    assert exploring[:12] == names * 3, "is all finite, who calls whom, is it a chain?"
    assert pruning == names


class Interrupted(Exception):
    pass


def interrupted_after(monkeypatch, num_parts):
    """Let the run die when a part is written and about to be noted, as if it was killed."""
    note = Progress.note

    def note_some(self):
        if len(self.finished) > num_parts:
            (self.folder / ".diffusion_pytorch_model-draft").touch()
            raise Interrupted
        note(self)

    monkeypatch.setattr(Progress, "note", note_some)


@pytest.mark.parametrize("num_parts", [0, 2, 4])
def test_an_interrupted_run_goes_on_to_the_same_bits(flux, tmp_path, num_parts):
    batches, pruned = [sample_of("flux")], tmp_path / "pruned"
    recipe = Recipe(Energy(), Row(), sequential=True, repair=LeastSquares())
    model, expected = in_memory(flux, batches, recipe)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        interrupted_after(patch, num_parts)
        ditprune.prune_folder(flux, pruned, batches, recipe=recipe)
    assert not (pruned / "config.json").exists()
    written = sorted(pruned.glob("*.safetensors"))
    assert len(written) == num_parts + 1
    before = {path: path.stat().st_mtime_ns for path in written[:num_parts]}
    found = ditprune.prune_folder(flux, pruned, batches, recipe=recipe)
    demand_equal(pruned, found, model, expected)
    assert not list(pruned.glob(".*"))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def contents(folder):
    """Shards to the byte; mask files, whose headers come in any order, by their hash."""
    shards = {path: path.read_bytes() for path in folder.glob("diffusion*.safetensors")}
    masks = [folder / "masks.safetensors", *folder.glob("masks/*")]
    return {**shards, **{path: MaskSet.load(path).hash() for path in masks}}


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip_a_bit, lambda path: path.unlink()])
@pytest.mark.parametrize("file", ["*-00003-of-00005.safetensors", "masks/transformer_blocks.1.*"])
def test_what_is_damaged_in_the_destination_is_made_again(damage, file, flux, tmp_path):
    batches, pruned = [sample_of("flux")], tmp_path / "pruned"
    ditprune.prune_folder(flux, pruned, batches, recipe=SEQUENTIAL)
    damaged = next(pruned.glob(file))
    before = contents(pruned)
    damage(damaged)
    ditprune.prune_folder(flux, pruned, batches, recipe=SEQUENTIAL)
    assert contents(pruned) == before


def test_a_finished_folder_is_not_pruned_again(dit, calibration, tmp_path, monkeypatch):
    first = ditprune.prune_folder(dit, tmp_path / "pruned", [calibration], recipe=SEQUENTIAL)
    monkeypatch.setattr("ditprune.folder.Task.explore", None)
    again = ditprune.prune_folder(dit, tmp_path / "pruned", [calibration], recipe=SEQUENTIAL)
    assert again.masks.hash() == first.masks.hash()


def test_another_configuration_is_refused_by_what_differs(dit, calibration, tmp_path):
    pruned = tmp_path / "pruned"
    ditprune.prune_folder(dit, pruned, [calibration], recipe=SEQUENTIAL)
    other = calibration._replace(latents=calibration.latents + 1)
    changes = {
        "recipe": {"recipe": SEQUENTIAL.at(0.6)},
        "samples": {"batches": [other]},
        "family": {"family": DiT(ignore_roles=(Role.MODULATION,))},
    }
    for name, change in changes.items():
        arguments = {"batches": [calibration], "recipe": SEQUENTIAL, **change}
        with pytest.raises(ValueError, match=f"begun with another {name}: go on"):
            ditprune.prune_folder(dit, pruned, **arguments)
    (dit / "config.json").write_text((dit / "config.json").read_text() + "\n")
    with pytest.raises(ValueError, match="begun with another source: go on"):
        ditprune.prune_folder(dit, pruned, [calibration], recipe=SEQUENTIAL)


def test_how_samples_are_split_into_batches_is_no_other_configuration(dit, calibration, tmp_path):
    first = ditprune.prune_folder(dit, tmp_path / "pruned", [calibration], recipe=SEQUENTIAL)
    single = [calibration.sample(i) for i in range(12)]
    again = ditprune.prune_folder(dit, tmp_path / "pruned", single, recipe=SEQUENTIAL)
    assert again.masks.hash() == first.masks.hash()


def test_a_folder_that_holds_something_else_is_left_alone(dit, calibration, tmp_path):
    for destination in (dit, tmp_path):
        with pytest.raises(ValueError, match="holds something else: give a new folder"):
            ditprune.prune_folder(dit, destination, [calibration], recipe=SEQUENTIAL)


def test_a_partial_source_is_named_before_anything_is_written(dit, calibration, tmp_path):
    index = json.loads((dit / "diffusion_pytorch_model.safetensors.index.json").read_text())
    name = "transformer_blocks.1.attn1.to_q.weight"
    shard = dit / index["weight_map"][name]
    whole = shard.read_bytes()

    def refused(match):
        with pytest.raises(ValueError, match=match):
            ditprune.prune_folder(dit, tmp_path / "pruned", [calibration], recipe=SEQUENTIAL)
        assert not (tmp_path / "pruned").exists()

    cut(shard)
    refused(rf"{shard.name} has .* bytes, and by its header")
    shard.unlink()
    refused(rf"cannot read .*{shard.name}")
    shard.write_bytes(b"no header")
    refused(rf"{shard.name} is no safetensors file, or cut off")
    shard.write_bytes(whole)
    del index["weight_map"][name]
    text = json.dumps(index)
    (dit / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with safe_open(shard, "pt") as file:
        others = {each: file.get_tensor(each) for each in file.keys() if each != name}  # noqa: SIM118
    save_file(others, shard, {"format": "pt"})
    refused(f"no file in .* holds {name}")
    index["weight_map"][name] = shard.name
    (dit / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    refused(f"{shard.name} lacks {name}")


def test_weights_of_another_shape_or_model_are_refused(dit, calibration, tmp_path):
    config = json.loads((dit / "config.json").read_text())

    def refused(match, **changes):
        (dit / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match=match):
            ditprune.prune_folder(dit, tmp_path / "pruned", [calibration], recipe=SEQUENTIAL)

    refused("they are of different models", attention_head_dim=16)
    refused("is of Nonsense, which diffusers .* does not know", _class_name="Nonsense")
    refused("quantised", quantization_config={"quant_method": "bitsandbytes"})
    (dit / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        ditprune.prune_folder(dit, tmp_path / "pruned", [calibration], recipe=SEQUENTIAL)


def test_weights_that_are_not_finite_are_found_before_calibration(tiny_dit, calibration, tmp_path):
    tiny_dit.transformer_blocks[1].ff.net[2].weight.data[0, 0] = torch.nan
    source = saved(tiny_dit, tmp_path / "dense")
    with pytest.raises(ValueError, match=r"NaN or infinite weights in transformer_blocks.1.ff.net"):
        ditprune.prune_folder(source, tmp_path / "pruned", [calibration], recipe=SEQUENTIAL)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(Energy(), Layer(), importance=TrajectoryImportance()),
        Recipe(SearchedEnergy(), Layer()),
        Recipe(Energy(), Layer(), sequential=True, repair=LeastSquares(), goal="dense"),
        Recipe(OBS(), Layer(), budget=SharedThreshold()),
    ],
)
def test_recipes_that_need_the_whole_model_are_refused_before_any_work(
    recipe, dit, calibration, tmp_path
):
    with pytest.raises(ValueError, match="one block is in memory at a time.*What goes:"):
        ditprune.prune_folder(dit, tmp_path / "pruned", [calibration], recipe=recipe)
    assert not (tmp_path / "pruned").exists()


def test_the_global_generator_and_the_default_dtype_are_left_alone(dit, calibration, tmp_path):
    before = torch.get_rng_state()
    ditprune.prune_folder(dit, tmp_path / "pruned", [calibration], recipe=SEQUENTIAL)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() is torch.float32


def test_the_command_does_the_same_with_samples_of_a_file(dit, calibration, tmp_path):
    ditprune.save_batches(tmp_path / "samples.safetensors", [calibration])
    config = {
        "source": str(dit),
        "destination": str(tmp_path / "pruned"),
        "samples": str(tmp_path / "samples.safetensors"),
        "recipe": {
            "saliency": {"class_path": "ditprune.saliency.Energy"},
            "granularity": {"class_path": "ditprune.granularity.Layer"},
            "sparsity": 0.5,
            "sequential": True,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    from ditprune.cli import main  # it loads Lightning, which the rest does without

    main(["prune-folder", "--config", str(tmp_path / "config.yaml")])
    again = ditprune.prune_folder(dit, tmp_path / "pruned", [calibration], recipe=SEQUENTIAL)
    _, expected = in_memory(dit, [calibration])
    assert again.masks.hash() == expected.masks.hash()
