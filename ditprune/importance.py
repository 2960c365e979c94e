"""How far an error in a layer's output moves the images, measured along sampling trajectories.

An error e of one layer's output at one denoising step moves the final image by J e, to first
order, where J is the derivative along the rest of the trajectory. For random v, E |J^T v|^2 tells
what an output channel, a step and a guidance branch contribute (Hutchinson 1990). Followed
backwards step by step, a trajectory costs one more forward and one backward for each step.
"""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ditprune.calibration import Weights, demand_samples, evaluating, single_samples
from ditprune.distributed import share_of_rank, sum_over_ranks
from ditprune.families import Batch, Family
from ditprune.targets import PruneTarget
from ditprune.trajectory import DenoisingStep, Trajectories

MAX_OUTPUTS = 8192
"""Channels above which only the diagonal of G is kept: the whole would take over 0.5 GB."""
TINY = 1e-300
"""In place of a sum of squares of zero, whose logarithm is taken."""

Importance = Tensor  # float64 [out, out], of another size in every layer
"""G of a layer: the second moment of the derivatives of the final image by its output channels,
over the steps, branches and tokens of sampling trajectories. What errors of its outputs do to the
images. Diagonal for layers of more than `MAX_OUTPUTS` channels."""


@dataclass(frozen=True)
class ImportanceMeasure(abc.ABC):
    """Measures the importance of every layer along sampling trajectories of the dense model."""

    guidance_scale: float = 1.5
    """Of the sampling to come."""
    num_trajectories: int = 128
    num_steps: int = 25
    """Denoising steps of a trajectory."""
    seed: int = 0
    """Of the noise where trajectories start, and of what else is drawn."""

    def measure(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        family: Family,
        weights: Weights,
        scheduler: SchedulerMixin,
    ) -> dict[PruneTarget, Importance]:
        """Follow trajectories for the conditions of the calibration samples.

        In a process group every rank must call this, and gets the same. The model is as before.

        Raises:
            ValueError: if there are no samples.
        """
        like = next(iter(weights.values()))
        samples = [sample.like(like) for sample in single_samples(batches)]
        demand_samples(bool(samples))
        trajectories = Trajectories(
            model,
            family,
            scheduler,
            samples,
            self.guidance_scale,
            self.num_trajectories,
            self.num_steps,
            self.seed,
        )
        with evaluating(model):
            return self.along(trajectories, weights)

    @abc.abstractmethod
    def along(self, trajectories: Trajectories, weights: Weights) -> dict[PruneTarget, Importance]:
        """Return the importance of every layer; in a process group each rank does its share."""


@dataclass(frozen=True)
class TrajectoryImportance(ImportanceMeasure):
    """The second moment of derivatives of the image, from one random direction a trajectory.

    Derivatives are taken by outputs of layers, never by weights: nothing is trained. Every
    trajectory counts alike: its derivatives are scaled to a sum of squares of 1. A few near a
    fork, which go elsewhere at the slightest touch, would otherwise decide alone.
    """

    def along(self, trajectories: Trajectories, weights: Weights) -> dict[PruneTarget, Importance]:
        """Follow trajectories there and back, twice: to know their scale, and to sum."""
        sums = {target: zeros(len(weight), weight.device) for target, weight in weights.items()}
        for ids in share_of_rank(trajectories.chunks()):
            step, direction = trajectories.step(ids), trajectories.noise(ids, "direction")
            states = step.states(trajectories.noise(ids))
            scale = trajectory_norms(back(step, states, direction, weights), len(ids))
            scaled = direction / scale.to(direction).view(-1, *[1] * (direction.ndim - 1))
            for target, gradient in back(step, states, scaled, weights):
                sums[target] += products(gradient, sums[target].ndim)
        return {
            target: whole(sum_over_ranks(total)) / self.num_trajectories
            for target, total in sums.items()
        }


def back(
    step: DenoisingStep,
    states: Sequence[Float[Tensor, "b ..."]],
    direction: Float[Tensor, "b ..."],
    weights: Weights,
) -> Iterator[tuple[PruneTarget, Float[Tensor, "_ tokens out"]]]:
    """Yield J^T v by the outputs of every layer, from the last step to the first.

    Only the latents of each step were kept: a step runs again when its derivative is taken.
    """
    for index in reversed(range(len(states))):
        with torch.enable_grad(), capturing_outputs(step.model, list(weights)) as outputs:
            latents = states[index].detach().requires_grad_()
            after = step(latents, index)
            heard = [(target, tensor) for target, tensors in outputs.items() for tensor in tensors]
            inputs = [latents, *(tensor for _, tensor in heard)]
            # The last text stream of some models is heard by no image: its derivative is 0.
            direction, *gradients = torch.autograd.grad(
                after, inputs, direction, materialize_grads=True
            )
        for (target, _), gradient in zip(heard, gradients, strict=True):
            yield target, as_tokens(gradient)


@contextmanager
def capturing_outputs(
    model: nn.Module, targets: Sequence[PruneTarget]
) -> Iterator[dict[PruneTarget, list[Tensor]]]:
    """Collect what the layers return, as tensors to differentiate by, while the block runs."""
    outputs: dict[PruneTarget, list[Tensor]] = {target: [] for target in targets}

    def capture(target: PruneTarget, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        # Modulation depends on no latents; where weights are frozen too, nothing would lead to it.
        tracked = output if output.requires_grad else output.detach().requires_grad_()
        outputs[target].append(tracked)
        return tracked

    handles = [
        model.get_submodule(target.name).register_forward_hook(partial(capture, target))
        for target in targets
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def as_tokens(gradient: Float[Tensor, "..."]) -> Float[Tensor, "rows tokens out"]:
    """Return [rows, tokens, out] of [rows, tokens, out], [rows, out] or [rows, out, h, w]."""
    if gradient.ndim == 4:
        return gradient.flatten(2).mT
    return gradient.unsqueeze(1) if gradient.ndim == 2 else gradient


def trajectory_norms(
    gradients: Iterable[tuple[PruneTarget, Float[Tensor, "_ tokens out"]]], num_trajectories: int
) -> Float64[Tensor, " b"]:
    """Return the root of each trajectory's sum of squares: the geometric mean over the layers."""
    sums: dict[PruneTarget, Tensor] = {}
    for target, gradient in gradients:
        rows = gradient.float().square().sum((1, 2)).double().cpu()
        branches = rows.view(-1, num_trajectories)  # they are stacked along the batch
        sums[target] = sums.get(target, torch.zeros(())) + branches.sum(0)
    heard = [total for total in sums.values() if total.any()]  # the others move no image
    logs = torch.stack(heard or list(sums.values())).clamp(min=TINY).log()
    return logs.mean(0).exp().sqrt()


def zeros(num_outputs: int, device: torch.device) -> Float64[Tensor, "..."]:
    """Return nothing yet: a matrix, or a diagonal where a matrix would take too much."""
    shape = (num_outputs, num_outputs) if num_outputs <= MAX_OUTPUTS else (num_outputs,)
    return torch.zeros(shape, dtype=torch.float64, device=device)


def products(gradient: Float[Tensor, "rows tokens out"], ndim: int) -> Float64[Tensor, "..."]:
    """Return the products of the derivatives by every pair of channels, or their squares."""
    tokens = gradient.flatten(0, 1).float()
    return on_grid((tokens.T @ tokens if ndim == 2 else tokens.square().sum(0)).double())


def on_grid(values: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """Round to 24 bits of the largest: so far down, sums in 53 bits are exact in whatever order.

    That is for as long as they stay below 2**29 times the largest number of the quietest step.
    """
    step = torch.ldexp(values.new_ones(()), values.abs().max().frexp().exponent - 24)
    return (values / step).round() * step


def whole(total: Float64[Tensor, "..."]) -> Importance:
    """Return a matrix, also of a diagonal."""
    return total if total.ndim == 2 else total.diag()


def in_image_units(weights: Weights, importance: Mapping[PruneTarget, Importance]) -> Weights:
    """Return weights times what their outputs are worth, scaled when they are asked for."""
    return ImageUnits(weights, importance) if importance else weights


@dataclass(frozen=True)
class ImageUnits(Mapping[PruneTarget, Tensor]):
    """Weights times the root of the diagonal of G, one layer in memory at a time."""

    weights: Weights
    importance: Mapping[PruneTarget, Importance]

    def __getitem__(self, target: PruneTarget) -> Float[Tensor, "out in"]:
        """Scale one layer."""
        weight = self.weights[target].float()
        rows = self.importance[target].diagonal().to(weight.device)
        # An estimate of zero is not zero.
        return weight * rows.clamp(min=1e-4 * rows.mean().item()).sqrt().float().unsqueeze(1)

    def __iter__(self) -> Iterator[PruneTarget]:
        """Iterate over the layers."""
        return iter(self.weights)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.weights)
