"""Turns scores into masks, applies them, and sees that they hold."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Literal

import lightning as L
import torch

from ditprune.alpha import settle
from ditprune.budget import Budget, Uniform
from ditprune.budget.base import demand_fraction
from ditprune.calibration import Weights
from ditprune.callbacks.before_pruning import AfterPruning, BeforeCalibration, BeforePruning
from ditprune.callbacks.lookup import callbacks_of, demand_callback
from ditprune.callbacks.prune import PruneCallback
from ditprune.clustered import ClusteredLayer, telling
from ditprune.decision import decide, demand_attainable, scores_of
from ditprune.distributed import on_first_rank
from ditprune.granularity import Granularity
from ditprune.layers import target_weights
from ditprune.masks import MaskSet
from ditprune.pipeline import carry_out_
from ditprune.plan import Plan, describe, row_variations
from ditprune.recipe import Recipe
from ditprune.repair import Repair


class GranularityCallback(BeforeCalibration):
    """Chooses how much each layer gives and who competes there; keeps the winners, repairs them."""

    masks: MaskSet | None = None
    """Which weights stay, once decided."""
    plan: Plan | None = None
    """What every layer gave, once decided."""
    clustered: Sequence[ClusteredLayer] = ()
    """A few layers with the clusters found in them, once decided."""
    repair_seconds: float = 0.0

    def __init__(
        self,
        granularity: Granularity,
        sparsity: float = 0.5,
        budget: Budget = Uniform(),
        repair: Repair | None = None,
        sequential: bool = False,
        goal: Literal["own", "dense"] = "own",
    ) -> None:
        """Choose what goes, and what the rest does about it.

        Args:
            granularity: who competes with whom.
            sparsity: the fraction of all target weights that goes.
            budget: how much of it each layer gives.
            repair: what the kept weights do about those that went; None leaves them.
            sequential: prune layer after layer; later ones are calibrated on what the pruned
                earlier ones say.
            goal: what a sequential repair keeps: the layer's outputs for the inputs it now gets,
                or those it gives in the dense model.
        """
        demand_fraction(sparsity)
        self.granularity = granularity
        self.sparsity = sparsity
        self.budget = budget
        self.repair = repair
        self.sequential = sequential
        self.goal: Literal["own", "dense"] = goal

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there will be scores."""
        demand_callback(trainer, PruneCallback)

    @property
    def needs_gram(self) -> bool:
        """Whether the budget reads them."""
        return self.budget.needs_gram

    def before_calibration(self, weights: Weights) -> None:
        """Check that the layers can give what is asked for."""
        demand_attainable(weights, self.granularity, self.sparsity, self.budget)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prune."""
        self._finalise(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prune, if that was not done yet."""
        self._finalise(trainer, pl_module)

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """See that no other callback brought pruned weights back at the start of validation."""
        if batch_idx == 0 and dataloader_idx == 0:
            self.demand_pruned(trainer, pl_module)

    def demand_pruned(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise a RuntimeError if weights that went are there again."""
        assert self.masks is not None
        model = demand_callback(trainer, PruneCallback).transformer(pl_module)
        back = self.masks.violations(model)
        if back:
            raise RuntimeError(
                f"{len(back)} pruned layers hold pruned weights again, {back[0].name} for one: "
                "what is validated is not the pruned model. A callback that swaps weights when "
                "validation starts (EMA, weight averaging) does this: copy the averaged weights "
                "into the module, prune, and validate without that callback."
            )

    def _finalise(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.masks is not None:
            return
        for callback in callbacks_of(trainer):
            if isinstance(callback, BeforePruning):
                callback.before_pruning(trainer, pl_module)
        pruner = demand_callback(trainer, PruneCallback)
        start = perf_counter()
        # Validation runs in inference mode, whose tensors could never be fine-tuned.
        with torch.inference_mode(False):
            masks, self.plan = self._prune(trainer, pl_module, pruner)
        self.repair_seconds = perf_counter() - start
        demand_agreement(masks)
        self.masks = masks
        for callback in callbacks_of(trainer):
            if isinstance(callback, AfterPruning):
                callback.after_pruning(trainer, pl_module)

    def _prune(
        self, trainer: L.Trainer, pl_module: L.LightningModule, pruner: PruneCallback
    ) -> tuple[MaskSet, Plan]:
        model, recipe = pruner.transformer(pl_module), self.recipe(pruner)
        evidence, weights = pruner.evidence, target_weights(model, pruner.family)
        assert evidence is not None
        recipe = settle(model, pruner.batches(trainer), pruner.family, weights, recipe)
        scores = scores_of(evidence, weights, recipe)
        variations, pools = row_variations(scores), decide(evidence, weights, recipe)
        self.clustered = telling(scores, pools, variations)  # the scores are gone with the weights
        outcome = carry_out_(
            model, pruner.batches(trainer), pruner.family, weights, evidence, pools, recipe
        )
        return outcome.masks, describe(model, pools, variations, outcome)

    def recipe(self, pruner: PruneCallback) -> Recipe:
        """Return all that decides the result."""
        return Recipe(
            saliency=pruner.saliency,
            granularity=self.granularity,
            sparsity=self.sparsity,
            budget=self.budget,
            repair=self.repair,
            sequential=self.sequential,
            goal=self.goal,
            importance=pruner.importance,
            observation=pruner.observation,
        )


def demand_agreement(masks: MaskSet) -> None:
    """Raise a RuntimeError if this rank decided otherwise than the first."""
    mine = masks.hash()
    first = on_first_rank(masks.hash)
    if mine != first:
        raise RuntimeError(
            f"this rank's masks ({mine[:12]}) differ from the first rank's ({first[:12]}): the "
            "ranks hold other weights or saw other calibration samples"
        )
