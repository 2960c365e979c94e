"""Pruning a model that no memory holds: from folder to folder, one block at a time."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress as Bar
from torch import Tensor, nn

from ditprune.activations import Stats
from ditprune.batch_files import load_batches
from ditprune.blocks import Chain, Walk
from ditprune.calibration import demand_samples, single_samples
from ditprune.decision import Evidence, decide, decide_by_shapes, demand_attainable
from ditprune.distributed import is_distributed
from ditprune.families import Batch, Family
from ditprune.find import Found, demand_family
from ditprune.granularity import Pools
from ditprune.layers import demand_finite_weights
from ditprune.masks import MaskSet, StoredMasks, weight_matrix
from ditprune.paging import PagedWeights, Pager, empty_model, load_outside_, outside, paging
from ditprune.pipeline import Outcome, PrunedLayer, prune_layers_
from ditprune.progress import OUTSIDE, Progress, what_decides, write_json
from ditprune.recipe import Recipe
from ditprune.saliency import SearchedEnergy
from ditprune.shards import Shards, read_file
from ditprune.targets import PruneTarget

PoolsOf = dict[PruneTarget, Pools]


@torch.no_grad()
def prune_folder(
    source: str | Path,
    destination: str | Path,
    batches: Iterable[Batch],
    *,
    recipe: Recipe,
    family: Family | None = None,
    device: str | torch.device = "cpu",
) -> Outcome:
    """Prune a model on disk, as `prune` does one in memory, to the bit.

    In memory are two blocks at most, the one that is pruned and the next one, which is read
    meanwhile; what lies outside of the blocks; and what the last block said of every sample. Called
    again after an interruption, it goes on behind the last finished block.

    Args:
        source: the folder of a transformer, as `save_pretrained` of diffusers writes it.
        destination: gets the same layout, which `from_pretrained` loads, and `masks.safetensors`.
        batches: calibration samples; `save_batches` and `load_batches` carry them between machines.
        recipe: what is pruned how.
        family: where the layers are; None asks the model's class.
        device: where blocks run.

    Returns:
        What `prune` does; the masks are read from the destination when they are asked for.

    Raises:
        ValueError: before anything is pruned, if a file of the source is missing or damaged, if the
            recipe needs the whole model at once, or if the destination holds something else; and
            as `prune` does. What is finished stays.
    """
    demand_alone()
    task = Task.of(Path(source), batches, recipe, family, torch.device(device))
    decided_by = what_decides(task.shards, recipe, task.family, task.samples)
    progress = Progress(Path(destination), decided_by, task.blocks)
    task.copy_unpruned(progress)
    task.prune(progress)
    return task.close(progress)


def prune_folder_by_file(
    source: Path,
    destination: Path,
    samples: Path,
    recipe: Recipe,
    family: Family | None = None,
    device: str = "cpu",
) -> None:
    """Prune a model on disk, larger than the memory; called again, it goes on where it stopped.

    Args:
        source: the folder of a transformer, as `save_pretrained` of diffusers writes it.
        destination: gets the same layout, which `from_pretrained` loads, and `masks.safetensors`.
        samples: a file of calibration samples, as `ditprune.save_batches` writes it.
        recipe: what is pruned how.
        family: where the layers are; None asks the model's class.
        device: where blocks run.
    """
    batches = load_batches(samples)
    prune_folder(source, destination, batches, recipe=recipe, family=family, device=device)


@dataclass(frozen=True)
class Task:
    """A model on disk, and what is to be done with it."""

    shards: Shards
    model: nn.Module
    """Without the memory of its blocks."""
    names: Sequence[str]
    """Of all its tensors."""
    family: Family
    targets: Sequence[PruneTarget]
    blocks: Sequence[str]
    """All of them, also those without a target."""
    samples: Sequence[Batch]
    recipe: Recipe
    pools: PoolsOf | None
    """None where scores decide them."""
    device: torch.device

    @classmethod
    def of(
        cls,
        source: Path,
        batches: Iterable[Batch],
        recipe: Recipe,
        family: Family | None,
        device: torch.device,
    ) -> "Task":
        """Look at all that may be wrong, before the work."""
        demand_block_by_block(recipe)
        shards = Shards.of(source)
        model = empty_model(shards)
        shards.demand_holds(model.state_dict())
        family = family or demand_family(Found(str(source), model))
        targets = family.targets(model)
        shapes = {target: weight_matrix(model, target) for target in targets}
        demand_attainable(shapes, recipe.granularity, recipe.sparsity, recipe.budget)
        pools = decide_by_shapes(shapes, recipe)
        if pools is None and recipe.decides_by_gram:
            raise ValueError(refusal("Gram matrices of all layers"))
        samples = list(single_samples(batches))
        demand_samples(bool(samples))
        names, blocks = list(model.state_dict()), blocks_of(model, family)
        return cls(
            shards=shards,
            model=model,
            names=names,
            family=family,
            targets=targets,
            blocks=blocks,
            samples=samples,
            recipe=recipe,
            pools=pools,
            device=device,
        )

    def copy_unpruned(self, progress: Progress) -> None:
        """Write what lies outside of the blocks, and the blocks that stay dense."""
        pruned = {target.block_name for target in self.targets}
        for part in progress.parts:
            if part not in pruned and part not in progress.finished:
                names = self.inside(part)
                progress.finish(part, self.shards.read(names, torch.device("cpu")))

    def prune(self, progress: Progress) -> None:
        """Prune the blocks that are not finished."""
        left = [target for target in self.targets if target.block_name not in progress.finished]
        if not left:
            return
        load_outside_(self.model, self.blocks, self.shards, self.device)
        walk, pools = self.explore()
        number = len({target.block_name for target in left})
        lines = self.prune_blocks(walk, left, pools, progress)
        with Bar() as bar:
            for line in bar.track(lines, number, description="pruning"):
                bar.console.print(line, highlight=False)

    def explore(self) -> tuple[Walk, PoolsOf]:
        """Run the dense model, to see the order of its layers and what its pools depend on."""
        with paging(self.model, self.blocks, self.read_dense) as pager:
            weights = PagedWeights(self.model, self.targets, pager)
            demand_finite_weights(weights)
            seen = self.recipe.observation
            walk = Walk.of(self.model, self.samples, self.family, weights, seen, self.blocks)
            demand_chain(walk.chain, self.targets)
            if self.pools is not None:
                return walk, self.pools
            dense: Stats = {t: stats for block in walk.dense() for t, stats in block.items()}
            return walk, decide(Evidence(dense), weights, self.recipe)

    def prune_blocks(
        self, walk: Walk, left: Sequence[PruneTarget], pools: PoolsOf, progress: Progress
    ) -> Iterator[str]:
        """Prune block after block, and tell of each."""
        read = partial(self.read_as_left, progress)
        with paging(self.model, self.blocks, read) as pager:
            weights = PagedWeights(self.model, self.targets, pager)
            seen = replace(self.recipe.observation, with_gram=self.recipe.needs_gram)
            chain = walk.chain.asking(set(left))
            walk = replace(walk, chain=chain, weights=weights, observation=seen)
            pruned: list[PrunedLayer] = []
            start = time.monotonic()
            with closing(walk.stats(self.recipe.follow)) as known:
                for stats in known:
                    pager.unwritten = True
                    pruned += self.prune_layers(stats, pools)
                    if len(pruned) == len(self.beside(pruned[0].target)):
                        line = self.write(pruned, pager, progress)
                        yield f"{line} in {time.monotonic() - start:.1f} s"
                        pruned, start = [], time.monotonic()

    def prune_layers(self, stats: Stats, pools: PoolsOf) -> list[PrunedLayer]:
        """Prune some layers of the block that is there; their neighbours are those in it."""
        neighbours = self.beside(next(iter(stats)))
        here = {target: weight_matrix(self.model, target) for target in neighbours}
        return list(prune_layers_(self.model, here, Evidence(stats), pools, self.recipe))

    def beside(self, target: PruneTarget) -> list[PruneTarget]:
        """Return the targets of a layer's block."""
        return [other for other in self.targets if other.block_name == target.block_name]

    def write(self, pruned: Sequence[PrunedLayer], pager: Pager, progress: Progress) -> str:
        """Write a pruned block."""
        found, block = {layer.target: layer for layer in pruned}, pruned[0].target.block_name
        masks = MaskSet({target: found[target].mask for target in self.beside(pruned[0].target)})
        tensors = {f"{block}.{n}": x for n, x in pager.blocks[block].state_dict().items()}
        errors = {layer.target.name: layer.errors for layer in pruned if layer.errors}
        progress.finish(block, tensors, masks, errors)
        pager.unwritten = False
        size = sum(mask.numel() for mask in masks.masks.values())
        return f"{block}: {masks.sparsity():.2%} of {size:,} weights"

    def close(self, progress: Progress) -> Outcome:
        """Write what makes a model of the blocks."""
        pruned = dict.fromkeys(target.block_name for target in self.targets)
        masks = MaskSet(StoredMasks(progress.masks(block) for block in pruned))
        masks.save(progress.folder / "masks.safetensors")
        config = {**progress.decided_by, "sparsity": masks.sparsity(), "masks": masks.hash()}
        write_json(progress.folder / "pruning_config.json", config)
        progress.close((self.shards.folder / "config.json").read_bytes())
        errors = progress.errors()
        return Outcome(masks, {t: errors[t.name] for t in self.targets if t.name in errors})

    def inside(self, part: str) -> list[str]:
        """Return the names of the tensors of a part of the model."""
        if part == OUTSIDE:
            return outside(self.names, self.blocks)
        return [name for name in self.names if name.startswith(f"{part}.")]

    def read_dense(self, block: str) -> dict[str, Tensor]:
        """Read a block of the source."""
        return within(block, self.shards.read(self.inside(block), self.device))

    def read_as_left(self, progress: Progress, block: str) -> dict[str, Tensor]:
        """Read a block as later ones hear it: pruned, if it is and they are to hear that."""
        if not self.recipe.sequential or block not in progress.finished:
            return self.read_dense(block)
        tensors = read_file(progress.shard(block), self.inside(block), self.device)
        return within(block, tensors)


def within(block: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name tensors as they are called inside their block."""
    return {name.removeprefix(f"{block}."): tensor for name, tensor in tensors.items()}


def blocks_of(model: nn.Module, family: Family) -> list[str]:
    """Return the names of all blocks, also of those without a target.

    Raises:
        ValueError: if the whole model is one.
    """
    whole: Any = replace(family, include="", ignore=None, ignore_roles=())
    blocks = list(dict.fromkeys(target.block_name for target in whole.targets(model)))
    if "" in blocks:
        raise ValueError(f"{family} finds no blocks in the model, so it cannot come block by block")
    return blocks


def demand_alone() -> None:
    """Raise a ValueError in a process group."""
    if is_distributed():
        raise ValueError("a folder is pruned by one process; call this outside of process groups")


def demand_block_by_block(recipe: Recipe) -> None:
    """Raise a ValueError if a recipe looks at the whole model in memory."""
    if recipe.importance is not None:
        raise ValueError(refusal(f"{recipe.importance}, which follows derivatives through it,"))
    if isinstance(recipe.saliency, SearchedEnergy):
        raise ValueError(refusal("SearchedEnergy, which tries masks of all layers,"))
    if recipe.goal == "dense":
        raise ValueError(refusal("goal='dense', which runs the dense blocks beside the pruned,"))


def refusal(what: str) -> str:
    """Say why a recipe does not go, and which does."""
    return (
        f"one block is in memory at a time, and the recipe asks for more: {what} needs several. "
        "What goes: any saliency, granularity, budget and repair, sequential or not, with "
        "importance=None, goal='own' and, for Energy, exponents you choose; and where a saliency "
        "reads Gram matrices, the budget Uniform with Layer, Row, Column or NM"
    )


def demand_chain(chain: Chain, targets: Sequence[PruneTarget]) -> None:
    """Raise a ValueError unless each block runs once, hearing the last alone; or layers do not."""
    if not chain.closed or any(link.num_calls > 1 for link in chain.blocks.values()):
        raise ValueError(
            "in this model blocks hear of earlier ones by other ways than the block before (skip "
            "connections), or run several times in one prediction, so that several would have to "
            "be in memory: use ditprune.prune"
        )
    called = {t for link in chain.blocks.values() for group in link.layers for t in group}
    if missing := [target.name for target in targets if target not in called]:
        raise ValueError(
            f"the calibration samples never reach {', '.join(missing[:8])}: leave them out "
            "(ignore=... of the family)"
        )
