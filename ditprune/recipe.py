"""The parts of a pruning method, put together."""

from dataclasses import dataclass, field, fields, replace

from ditprune.budget import Budget, Uniform
from ditprune.calibration import Observation
from ditprune.granularity import Granularity
from ditprune.repair import Repair
from ditprune.saliency import Saliency


@dataclass(frozen=True)
class Recipe:
    """What is pruned how."""

    saliency: Saliency
    granularity: Granularity
    sparsity: float
    """The fraction of the targets' weights that goes."""
    budget: Budget = field(default_factory=Uniform)
    repair: Repair | None = None
    sequential: bool = False
    """Prune block after block: later blocks are calibrated on what the pruned earlier ones say."""
    observation: Observation = field(default_factory=Observation)

    def at(self, sparsity: float) -> "Recipe":
        """Return the same recipe at another sparsity."""
        return replace(self, sparsity=sparsity)

    @property
    def needs_gram(self) -> bool:
        """Whether the Gram matrices of the layers' inputs are needed."""
        return self.saliency.needs_gram or (self.repair is not None and self.repair.needs_gram)

    def parts(self) -> dict[str, str]:
        """Return the name of every part and what it is, as text."""
        return {part.name: repr(getattr(self, part.name)) for part in fields(self)}
