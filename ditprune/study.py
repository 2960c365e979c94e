"""Methods side by side: each at every sparsity, calibrated once for each seed."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from diffusers import SchedulerMixin
from rich.progress import Progress
from torch import Tensor, nn

from ditprune.alpha import settle
from ditprune.atomic import writing
from ditprune.budget import Uniform
from ditprune.calibration import Weights, calibrate
from ditprune.decision import Evidence, decide, demand_attainable
from ditprune.distributed import barrier, on_first_rank, rank
from ditprune.families import Batch, Family
from ditprune.granularity import NofM
from ditprune.layers import restoring, target_weights
from ditprune.measurement import Measured
from ditprune.pipeline import carry_out_, measure_importance
from ditprune.plan import Plan, describe
from ditprune.prediction import HELD_OUT_SEED, Judge
from ditprune.recipe import Recipe
from ditprune.saliency import Energy
from ditprune.saved_stats import fingerprint, load_evidence, save_evidence

Setting = float | NofM
"""How much goes: a sparsity, or a pattern that fixes it."""


class Cell(NamedTuple):
    """One method at one setting, calibrated with one seed."""

    method: str
    setting: str
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Result:
    """What one cell gave."""

    method: str
    setting: str
    seed: int
    recipe: Mapping[str, str]
    target_set: str
    target_sparsity: float
    model_sparsity: float
    mask_hash: str
    pruning_seconds: float
    prediction_error: float
    """|f_pruned - f|^2 / |f|^2 of single denoising steps, of samples no method was given."""
    metrics: Measured = field(default_factory=dict)
    """A value of each metric for each seed of the sampling noise."""


@dataclass(frozen=True)
class Study:
    """Which cells there are."""

    methods: Mapping[str, Recipe]
    sparsities: Sequence[float] = ()
    patterns: Sequence[NofM] = ()
    seeds: Sequence[int] = (0, 1, 2)
    """Of the calibration samples."""

    def __post_init__(self) -> None:
        """Refuse a study of nothing."""
        if not self.methods or not self.seeds or not (self.sparsities or self.patterns):
            raise ValueError("a study needs methods, seeds, and sparsities or patterns")
        if HELD_OUT_SEED in self.seeds:
            raise ValueError(f"seed {HELD_OUT_SEED} draws the samples that judge; take another")
        for asked in (self.seeds, [name_of(s) for s in self.settings()]):
            if len(set(asked)) < len(asked):
                raise ValueError(f"a study takes each setting and each seed once; got {asked}")

    def settings(self) -> list[Setting]:
        """Return the sparsities, then the patterns."""
        return [*self.sparsities, *self.patterns]

    def cells(self) -> list[Cell]:
        """Return all cells, seed after seed."""
        return [
            Cell(method, name_of(setting), seed, at(recipe, setting))
            for seed in self.seeds
            for setting in self.settings()
            for method, recipe in self.methods.items()
        ]

    def with_gram(self) -> bool:
        """Tell whether any method needs Gram matrices."""
        return any(recipe.needs_gram for recipe in self.methods.values())

    def balances(self) -> dict[str, float]:
        """Return n/m of those methods that differ in nothing else, if they are three or more."""
        sets: dict[str, dict[str, float]] = {}
        for name, recipe in self.methods.items():
            if isinstance(recipe.saliency, Energy):
                rest = str(replace(recipe, saliency=Energy()))
                sets.setdefault(rest, {})[name] = recipe.saliency.balance
        largest = max(sets.values(), key=len, default={})
        return largest if len(largest) > 2 else {}


def name_of(setting: Setting) -> str:
    """Return `60%`, `62.5%` or `2:4`."""
    return setting.name if isinstance(setting, NofM) else f"{100 * setting:g}%"


def at(recipe: Recipe, setting: Setting) -> Recipe:
    """Return a method at a setting; a pattern takes the place of granularity and budget."""
    if isinstance(setting, NofM):
        return replace(recipe, granularity=setting, budget=Uniform(), sparsity=setting.sparsity)
    return recipe.at(setting)


@dataclass(frozen=True)
class Bench:
    """What the cells of a study share."""

    model: nn.Module
    family: Family
    scheduler: SchedulerMixin | None
    samples: Callable[[int], Iterable[Batch]]
    """The calibration samples of a seed."""
    measure: Callable[[], Measured]
    """Measures the model as it is now."""
    identity: str
    """What else decides the results: the evaluation. A result of another identity is redone."""
    folder: Path

    def identified(self, weights: Weights) -> "Bench":
        """Return the same with the model and its targets in the identity too."""
        model = "".join(map(fingerprint, weights.values()))
        return replace(self, identity=f"{self.identity}{self.family}{model}")

    def weights(self) -> Weights:
        """Return the targets' weights."""
        return target_weights(self.model, self.family)

    def judge(self, seed: int) -> Judge:
        """Ask the model, which must be dense, what it predicts for the samples of a seed."""
        like = next(iter(self.weights().values()))
        return Judge.of(self.model, self.samples(seed), self.family, like)


class Draw(NamedTuple):
    """The calibration samples of a seed."""

    batches: list[Batch]
    identity: str
    """A digest of them."""

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> "Draw":
        """Draw them."""
        drawn = list(batches)
        return cls(drawn, digest_of(drawn))


def run(study: Study, bench: Bench) -> list[Result]:
    """Run the cells that have no result yet; return all results. The model stays as it was."""
    weights = bench.weights()
    for cell in study.cells():
        recipe = cell.recipe
        demand_attainable(weights, recipe.granularity, recipe.sparsity, recipe.budget)
        if recipe.importance is not None and bench.scheduler is None:
            raise ValueError(
                f"{cell.method} measures importance along sampling trajectories, which take the "
                "model's scheduler, an attribute of the LightningModule; or give importance: null"
            )
    bench = bench.identified(weights)
    results = []
    draw = lru_cache(maxsize=1)(lambda seed: Draw.of(bench.samples(seed)))
    judge = lru_cache(lambda: bench.judge(HELD_OUT_SEED))
    with Progress(disable=rank() > 0) as progress:
        task = progress.add_task("study", total=len(study.cells()))
        for cell in study.cells():
            progress.update(task, description=f"{cell.method}, {cell.setting}, seed {cell.seed}")
            results.append(
                result_of(cell, study.with_gram(), bench, weights, draw(cell.seed), judge)
            )
            progress.advance(task)
    return results


def result_of(
    cell: Cell,
    with_gram: bool,
    bench: Bench,
    weights: Weights,
    draw: Draw,
    judge: Callable[[], Judge],
) -> Result:
    """Return the result of one cell: from its file, or else from a run of it."""
    path = bench.folder / "cells" / file_name(cell, bench, draw)
    known = on_first_rank(partial(read_result, path))
    if known is not None:
        return known
    evidence = shared_evidence(cell, with_gram, bench, weights, draw)
    dense = judge()
    with restoring(bench.model, weights):
        start = perf_counter()
        recipe = settle(bench.model, draw.batches, bench.family, weights, cell.recipe)
        plan, mask_hash = prune_cell_(recipe, evidence, bench, weights, draw.batches)
        seconds = perf_counter() - start
        result = Result(
            method=cell.method,
            setting=cell.setting,
            seed=cell.seed,
            recipe=recipe.parts(),
            target_set=plan.target_set(),
            target_sparsity=plan.target_sparsity,
            model_sparsity=plan.model_sparsity,
            mask_hash=mask_hash,
            pruning_seconds=seconds,
            prediction_error=dense.errors(bench.model).mean().item(),
            metrics=bench.measure(),
        )
    if rank() == 0:
        with writing(path) as draft:
            draft.write_text(json.dumps(vars(result), indent=2) + "\n")
    return result


def prune_cell_(
    recipe: Recipe, evidence: Evidence, bench: Bench, weights: Weights, batches: Sequence[Batch]
) -> tuple[Plan, str]:
    """Prune the model by a recipe; return what every layer gave, and the masks' hash."""
    pools = decide(evidence, weights, recipe)
    outcome = carry_out_(bench.model, batches, bench.family, weights, evidence, pools, recipe)
    return describe(bench.model, pools, {}, outcome), outcome.masks.hash()


def shared_evidence(
    cell: Cell, with_gram: bool, bench: Bench, weights: Weights, draw: Draw
) -> Evidence:
    """Return what a seed's calibration tells: from files, or else from running it."""
    measure = cell.recipe.importance
    seen = replace(cell.recipe.observation, with_gram=with_gram)
    name = f"seed{cell.seed}-{digest(f'{seen}{measure}{draw.identity}')}"
    folder = bench.folder / "statistics" / name
    read = partial(load_evidence, folder, weights, seen, measure)
    known = on_disk(read)
    if on_first_rank(lambda: known is None):
        model, family, batches = bench.model, bench.family, draw.batches
        stats = calibrate(model, batches, family, weights, seen)
        importance = measure_importance(model, batches, family, weights, measure, bench.scheduler)
        if rank() == 0:
            save_evidence(folder, Evidence(stats, importance), weights, seen, measure)
        barrier()
        known = None
    return known or read()


def on_disk(read: Callable[[], Evidence]) -> Evidence | None:
    """Return what the files tell, or None if they are not there, whole, and of this model."""
    try:
        return read()
    except ValueError:
        return None


def file_name(cell: Cell, bench: Bench, draw: Draw) -> str:
    """Return a name that changes with whatever decides the result."""
    identity = digest(f"{cell.recipe}{bench.identity}{draw.identity}")
    words = f"{cell.method}-{cell.setting}-seed{cell.seed}".replace(" ", "_")
    return f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in words)}-{identity}.json"


def digest_of(batches: Sequence[Batch]) -> str:
    """Return twelve digits of a digest of calibration samples."""
    whole = hashlib.sha256()
    for batch in batches:
        conditions = batch.condition
        tensors = [conditions] if isinstance(conditions, Tensor) else list(conditions.values())
        for tensor in (batch.latents, batch.timestep, *tensors):
            whole.update(tensor.cpu().double().numpy().tobytes())
    return whole.hexdigest()[:12]


def digest(text: str) -> str:
    """Return twelve digits of a digest."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_result(path: Path) -> Result | None:
    """Return a result from its file, or None if there is none, or none that can be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return Result(**content)
    except (OSError, ValueError, TypeError):
        return None
