"""What datamodules of prompts have in common."""

import abc

from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from ditprune.datamodules.trajectories import TrajectoryDataModule


class PromptedDataModule(TrajectoryDataModule, abc.ABC):
    """Holds prompts, by whose places conditions stand for them."""

    prompts: list[str]

    @abc.abstractmethod
    def evaluation_conditions(self, num_samples: int) -> Int[Tensor, " n"]:
        """Return the places of the prompts to draw for."""

    def evaluation_prompts(self, num_samples: int) -> list[str]:
        """Return the prompts that `evaluation_conditions` stand for."""
        return [self.prompts[i] for i in self.evaluation_conditions(num_samples).tolist()]

    def val_dataloader(self) -> DataLoader[str]:
        """Return one prompt: what is validated are images, which EvaluationCallback draws."""
        return DataLoader(self.prompts[:1])  # type: ignore[arg-type]
