"""The parts of a pruning method, put together."""

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from ditprune.blocks import Follow
from ditprune.budget import Budget, SharedThreshold, Uniform
from ditprune.calibration import Observation
from ditprune.granularity import Granularity, Layer
from ditprune.importance import ImportanceMeasure, TrajectoryImportance
from ditprune.repair import KroneckerADMM, Repair
from ditprune.saliency import Energy, Saliency


@dataclass(frozen=True)
class Recipe:
    """What is pruned how."""

    saliency: Saliency
    granularity: Granularity
    sparsity: float = 0.5
    """The fraction of the targets' weights that goes."""
    budget: Budget = field(default_factory=Uniform)
    repair: Repair | None = None
    sequential: bool = False
    """Prune layer after layer: later ones are calibrated on what the pruned earlier ones say."""
    goal: Literal["own", "dense"] = "own"
    """What a sequential repair keeps: the layer's outputs for the inputs it now gets, or those it
    gives in the dense model."""
    importance: ImportanceMeasure | None = None
    """How errors of outputs are weighed; None weighs all alike."""
    observation: Observation = field(default_factory=Observation)

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        if self.goal == "dense" and not (self.sequential and self.repair is not None):
            raise ValueError("goal='dense' says what a sequential repair keeps; it needs both")

    def at(self, sparsity: float) -> "Recipe":
        """Return the same recipe at another sparsity."""
        return replace(self, sparsity=sparsity)

    @property
    def needs_gram(self) -> bool:
        """Whether the Gram matrices of the layers' inputs are needed."""
        repairs = self.repair is not None and (self.repair.needs_gram or self.goal == "dense")
        return self.decides_by_gram or repairs

    @property
    def decides_by_gram(self) -> bool:
        """Whether they are needed before anything is pruned: then those of all layers at once."""
        return self.saliency.needs_gram or self.budget.needs_gram

    @property
    def follow(self) -> Follow:
        """Whose activations later blocks are calibrated on."""
        if not self.sequential:
            return "dense"
        return "both" if self.goal == "dense" else "pruned"

    def parts(self) -> dict[str, str]:
        """Return the name of every part and what it is, as text."""
        return {part.name: repr(getattr(self, part.name)) for part in fields(self)}


def best(sparsity: float, guidance_scale: float = 1.5) -> Recipe:
    """Return what ditprune recommends: what the table of its study shows to keep the images best.

    Wanda's scores start the masks; one threshold for all layers decides what each gives; masks and
    weights are then found together, in a metric that tells what the images lose. It takes one
    backward pass through each step of `num_trajectories` samplings; no weight is trained.

    Args:
        sparsity: the fraction of the targets' weights that goes.
        guidance_scale: of the sampling to come.
    """
    return Recipe(
        saliency=Energy(1.0, 1.0),
        granularity=Layer(),
        sparsity=sparsity,
        budget=SharedThreshold(),
        repair=KroneckerADMM(),
        importance=TrajectoryImportance(guidance_scale),
    )
