"""How to draw images with what a module holds: its own method, or a pipeline of diffusers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor, nn

from ditprune.evaluation import Sampler
from ditprune.prompts import quiet
from ditprune.sampling_plan import SamplingPlan


@dataclass(frozen=True)
class PipelineSampler:
    """Draws images by a pipeline's call, with its own defaults."""

    pipeline: DiffusionPipeline
    prompts: Mapping[int, str]
    """Of every condition; none where conditions are class labels."""

    def sample(
        self, condition: Int[Tensor, " b"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "b c h w"]:
        """Draw one image in [-1, 1] for each condition, from a generator of its own."""
        conditions = condition.tolist()
        asked: dict[str, Any] = {"class_labels": conditions}
        if self.prompts:
            asked = {"prompt": [self.prompts[number] for number in conditions]}
        with quiet(self.pipeline), torch.no_grad():
            drawn = self.pipeline(**asked, generator=list(generators), output_type="np")
        return torch.from_numpy(drawn.images).permute(0, 3, 1, 2).float() * 2 - 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights of all parts, which decide the images."""
        parts = self.pipeline.components.items()
        return {
            f"{name}.{key}": x
            for name, part in parts
            if isinstance(part, nn.Module)
            for key, x in part.state_dict().items()
        }


def sampler_of(module: nn.Module, plan: SamplingPlan) -> Sampler:
    """Return the module itself, if it samples; else what draws by the only pipeline that it holds.

    Raises:
        ValueError: if it does neither, or holds several pipelines.
    """
    if isinstance(module, Sampler):
        return module
    held = {n: x for n, x in vars(module).items() if isinstance(x, DiffusionPipeline)}
    if len(held) != 1:
        raise ValueError(
            f"EvaluationCallback draws images with {type(module).__name__}.sample(condition, "
            "generators), and there is none, see ditprune.evaluation.Sampler; or with the only "
            f"pipeline of diffusers that it holds as an attribute, and there are {len(held)}"
        )
    prompts = dict(zip(plan.conditions.tolist(), plan.prompts, strict=False))
    return PipelineSampler(next(iter(held.values())), prompts)
