"""How far an error in a layer's output moves the images, measured along sampling trajectories.

An error e of one layer's output at one denoising step moves the final image by J e, to first
order, where J is the derivative along the rest of the trajectory. For random v, E |J^T v|^2 tells
what an output channel, a step and a guidance branch contribute (Hutchinson 1990). Followed
backwards step by step, a trajectory costs one more forward and one backward for each step.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ditprune.calibration import (
    Weights,
    demand_samples,
    evaluating,
    position_in_bins,
    single_samples,
)
from ditprune.distributed import share_of_rank, sum_over_ranks
from ditprune.families import Batch, Condition, Family
from ditprune.families.base import join_conditions
from ditprune.sampling import batch_at, draw_noise, guide, sample_generator
from ditprune.targets import PruneTarget, Role

CHUNK_SIZE = 16
"""Trajectories followed at once, whatever the user's batch: it decides which kernels run."""
MAX_OUTPUTS = 8192
"""Channels above which only the diagonal of G is kept: the whole would take over 0.5 GB."""
SHARE_INPUT = (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)


class Importance(NamedTuple):
    """What errors of one layer's output do to the final image."""

    outputs: Float64[Tensor, "out out"]
    """G: the second moment of the derivatives by its output channels, summed over a trajectory.
    Diagonal for layers of more than `MAX_OUTPUTS` channels."""
    tokens: Float64[Tensor, "T branches"]
    """Of a token, by timestep bin and guidance branch; 1 on average."""


@dataclass(frozen=True)
class TrajectoryImportance:
    """Measures importance along the dense model's own sampling trajectories.

    Derivatives are taken by outputs of layers, never by weights: nothing is trained. Stochastic
    and multi-step schedulers are replaced by DDIM, or by Euler's method of flow matching: only
    their steps are functions of the present state alone.
    """

    guidance_scale: float = 1.5
    """Of the sampling to come."""
    num_trajectories: int = 64
    num_steps: int = 25
    """Denoising steps of a trajectory."""
    seed: int = 0
    """Of the noise where trajectories start, and of the directions v."""

    def measure(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        family: Family,
        weights: Weights,
        scheduler: SchedulerMixin,
        num_timestep_bins: int,
    ) -> dict[PruneTarget, Importance]:
        """Follow trajectories, there and back, for the conditions of the calibration samples.

        In a process group each rank follows its share.

        Raises:
            ValueError: if there are no samples.
        """
        like = next(iter(weights.values()))
        samples = [sample.like(like) for sample in single_samples(batches)]
        demand_samples(bool(samples))
        sums = {t: DerivativeSums(len(weight), num_timestep_bins) for t, weight in weights.items()}
        with evaluating(model):
            for ids in share_of_rank(chunks(self.num_trajectories)):
                chosen = [samples[i % len(samples)] for i in ids]
                step = self._step(model, chosen, family, scheduler)
                start, direction = self._noise(chosen, ids)
                for level, gradients in there_and_back(step, start, direction, list(weights)):
                    timestep_bin = position_in_bins(level, num_timestep_bins)
                    for target, gradient in gradients.items():
                        sums[target].add(gradient, timestep_bin)
        return share_tokens({t: s.read(self.num_trajectories) for t, s in sums.items()})

    def _step(
        self,
        model: nn.Module,
        samples: Sequence[Batch],
        family: Family,
        scheduler: SchedulerMixin,
    ) -> "DenoisingStep":
        condition = join_conditions([sample.condition for sample in samples])
        plain = single_step(scheduler, self.num_steps)
        return DenoisingStep(model, family, plain, condition, self.guidance_scale)

    def _noise(self, samples: Sequence[Batch], ids: range) -> list[Float[Tensor, "b ..."]]:
        latents = samples[0].latents
        return [
            draw_noise(latents.shape[1:], [sample_generator(self.seed, i, stream) for i in ids]).to(
                latents
            )
            for stream in ("importance start", "importance direction")
        ]


@dataclass(frozen=True)
class DenoisingStep:
    """One guided step of sampling, as a function of the latents."""

    model: nn.Module
    family: Family
    scheduler: SchedulerMixin
    condition: Condition
    guidance_scale: float

    def __call__(self, latents: Float[Tensor, "b ..."], index: int) -> Float[Tensor, "b ..."]:
        """Return the latents after the index-th step."""
        timestep = self.scheduler.timesteps[index]
        # Some schedulers count their own steps; every call tells them where they are.
        self.scheduler._step_index = index
        batch = batch_at(self.scheduler, latents, timestep, self.condition)
        prediction = guide(self.family.predict(self.model, batch), self.guidance_scale)
        stepped: Tensor = self.scheduler.step(
            prediction[:, : latents.shape[1]], timestep, latents
        ).prev_sample
        return stepped

    def level(self, index: int) -> float:
        """Return the position of a step in the noise schedule."""
        timestep = float(self.scheduler.timesteps[index])
        return timestep / self.scheduler.config.num_train_timesteps


def there_and_back(
    step: DenoisingStep,
    start: Float[Tensor, "b ..."],
    direction: Float[Tensor, "b ..."],
    targets: Sequence[PruneTarget],
) -> Iterator[tuple[float, dict[PruneTarget, Tensor]]]:
    """Yield, from the last step to the first, J^T v by the output of every layer.

    Only the latents of each step are kept; a step runs again when its derivative is taken.
    """
    states = [start]
    indices = range(len(step.scheduler.timesteps))
    with torch.no_grad():
        for index in indices:
            states.append(step(states[-1], index))
    for index in reversed(indices):
        with torch.enable_grad(), capturing_outputs(step.model, targets) as outputs:
            latents = states[index].detach().requires_grad_()
            after = step(latents, index)
            reached = {target: heard for target, heard in outputs.items() if heard}
            inputs = [latents, *(tensor for heard in reached.values() for tensor in heard)]
            direction, *gradients = torch.autograd.grad(after, inputs, direction)
        pieces = iter(gradients)
        joined = {t: torch.cat([next(pieces) for _ in heard]) for t, heard in reached.items()}
        yield step.level(index), joined


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


class DerivativeSums:
    """Products of derivatives by the outputs of one layer, summed."""

    def __init__(self, num_outputs: int, num_timestep_bins: int, num_branches: int = 2) -> None:
        whole = num_outputs <= MAX_OUTPUTS
        shape = (num_outputs, num_outputs) if whole else (num_outputs,)
        self.outputs = torch.zeros(shape, dtype=torch.float64)
        self.tokens = torch.zeros(num_timestep_bins, num_branches, dtype=torch.float64)
        self.num_tokens = torch.zeros_like(self.tokens)

    def add(self, gradient: Float[Tensor, "..."], timestep_bin: int) -> None:
        """Add one step's derivatives: [b, tokens, out], [b, out] or [b, out, h, w]."""
        last = gradient.movedim(1, -1) if gradient.ndim == 4 else gradient
        for branch, part in enumerate(last.chunk(self.tokens.shape[1])):
            tokens = part.flatten(0, -2).float()
            products = tokens.T @ tokens if self.outputs.ndim == 2 else tokens.square().sum(0)
            self.outputs += products.double().cpu()
            self.tokens[timestep_bin, branch] += tokens.square().sum().double().cpu()
            self.num_tokens[timestep_bin, branch] += len(tokens)

    def read(self, num_trajectories: int) -> Importance:
        """Return the sums over all ranks as means over trajectories and over tokens."""
        packed = torch.cat([x.flatten() for x in (self.outputs, self.tokens, self.num_tokens)])
        sizes = [self.outputs.numel(), self.tokens.numel(), self.tokens.numel()]
        outputs, tokens, counts = sum_over_ranks(packed).split(sizes)
        tokens, counts = tokens.view_as(self.tokens), counts.view_as(self.tokens)
        outputs = outputs.view_as(self.outputs) / num_trajectories
        return Importance(
            outputs if outputs.ndim == 2 else outputs.diag(), per_token(tokens, counts)
        )


def per_token(
    sums: Float64[Tensor, "T branches"], counts: Float64[Tensor, "T branches"]
) -> Float64[Tensor, "T branches"]:
    """Return the mean of every bin, 1 on average; a bin without steps lies between others."""
    seen = counts[:, 0] > 0
    bins = np.arange(len(sums))
    means = (sums / counts.clamp(min=1)).numpy()
    columns = [np.interp(bins, bins[seen.numpy()], column[seen.numpy()]) for column in means.T]
    table = torch.from_numpy(np.stack(columns, axis=1))
    mean = table.mean().item()
    return table / mean if mean > 0 else torch.ones_like(table)


def share_tokens(found: Mapping[PruneTarget, Importance]) -> dict[PruneTarget, Importance]:
    """Average over q, k and v of one attention: their shared input is summed with one weight."""
    shared: dict[str, list[Tensor]] = {}
    for target, importance in found.items():
        shared.setdefault(input_of(target), []).append(importance.tokens)
    return {
        target: importance._replace(tokens=torch.stack(shared[input_of(target)]).mean(0))
        for target, importance in found.items()
    }


def input_of(target: PruneTarget) -> str:
    """Name what flows into a layer: one thing for q, k and v."""
    return target.name.rpartition(".")[0] if target.role in SHARE_INPUT else target.name


def single_step(scheduler: SchedulerMixin, num_steps: int) -> SchedulerMixin:
    """Return a scheduler of the same noise whose steps are functions of the present state."""
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    kind = FlowMatchEulerDiscreteScheduler if flow else DDIMScheduler
    plain = kind.from_config(scheduler.config)
    plain.set_timesteps(num_steps)
    return plain


def chunks(count: int) -> list[range]:
    """Cut 0..count into runs of the chunk size."""
    return [range(i, min(i + CHUNK_SIZE, count)) for i in range(0, count, CHUNK_SIZE)]
