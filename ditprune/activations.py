"""What flows into a layer, summed: means, energies, and where asked the Gram matrix."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ditprune.distributed import sum_over_ranks
from ditprune.targets import PruneTarget


class ActivationStats:
    """Sums over the tokens that flow into a layer, for each timestep bin.

    State is sums, so batches, ranks and resumed runs merge by addition. Every `add` is reduced in
    float32 and accumulated in float64: sums of 24-bit numbers in 53 bits are exact for as long
    as a channel's loudest sample carries less than 2**29 times the energy of its quietest one,
    divided by the number of samples. So the order of the additions does not matter, to the bit.
    """

    def __init__(
        self,
        num_inputs: int,
        num_timestep_bins: int = 1,
        device: torch.device | None = None,
        with_gram: bool = False,
    ) -> None:
        """Start from nothing, for T timestep bins; with the Gram matrix only where it is asked."""
        shape = (num_timestep_bins, num_inputs)
        self.sum: Float64[Tensor, "T in"] = torch.zeros(shape, dtype=torch.float64, device=device)
        self.sum_of_squares: Float64[Tensor, "T in"] = torch.zeros_like(self.sum)
        self.weight: Float64[Tensor, " T"] = torch.zeros(num_timestep_bins, dtype=torch.float64)
        """The weights of the tokens, summed: their number where all weigh 1."""
        self.gram: Float64[Tensor, "in in"] | None = None
        """Sum of x x^T over all tokens: the Hessian of the layer's squared output error."""
        if with_gram:
            self.gram = self.sum.new_zeros(num_inputs, num_inputs)

    def add(self, x: Float[Tensor, "..."], timestep_bin: int = 0, weight: float = 1.0) -> None:
        """Count the tokens of one call: [tokens, in], [b, tokens, in] or [b, in, h, w]."""
        tokens = x.movedim(1, -1) if x.ndim == 4 else x
        tokens = tokens.reshape(-1, self.sum.shape[1]).float()
        self.sum[timestep_bin] += weight * tokens.sum(0).double()
        self.sum_of_squares[timestep_bin] += weight * tokens.square().sum(0).double()
        self.weight[timestep_bin] += weight * len(tokens)
        if self.gram is not None:
            self.gram += weight * (tokens.T @ tokens).double()

    def __add__(self, other: "ActivationStats") -> "ActivationStats":
        """Merge with what was seen elsewhere."""
        merged = copy.copy(self)
        merged.unpack_(self.pack() + other.pack())
        return merged

    def energy(self) -> Float64[Tensor, " in"]:
        """Return the mean square of every channel, over the tokens of all timesteps."""
        return self.sum_of_squares.sum(0) / self.weight.sum().item()

    def rms(self) -> Float64[Tensor, " in"]:
        """Return the root of the energy: Wanda's ||X_j||_2 over the root of the token count."""
        return self.energy().sqrt()

    def mean(self) -> Float64[Tensor, " in"]:
        """Return the mean of every channel, over the tokens of all timesteps."""
        return self.sum.sum(0) / self.weight.sum().item()

    def second_moment(self) -> Float64[Tensor, "in in"]:
        """Return the mean of x x^T, over the tokens of all timesteps: the Gram matrix per token.

        Raises:
            RuntimeError: if no Gram matrix was asked for when recording began.
        """
        if self.gram is None:
            raise RuntimeError("these statistics were recorded without a Gram matrix")
        return self.gram / self.weight.sum().item()

    def pack(self) -> Float64[Tensor, " n"]:
        """Return the state as one vector, for a summed reduction over ranks."""
        gram = [] if self.gram is None else [self.gram.flatten()]
        sums = [self.sum.flatten(), self.sum_of_squares.flatten(), *gram]
        return torch.cat([self.weight.to(self.sum), *sums])

    def unpack_(self, packed: Float64[Tensor, " n"]) -> None:
        """Replace the state by what `pack` returned."""
        num_sums = self.sum.numel()
        sizes = [len(self.weight), num_sums, num_sums]
        weight, first, second, gram = packed.split([*sizes, len(packed) - sum(sizes)])
        self.weight = weight.cpu()
        self.sum = first.reshape(self.sum.shape).clone()
        self.sum_of_squares = second.reshape(self.sum.shape).clone()
        if self.gram is not None:
            self.gram = gram.reshape(self.gram.shape).clone()


Stats = Mapping[PruneTarget, ActivationStats]


@contextmanager
def recording(
    model: nn.Module,
    stats: MutableMapping[PruneTarget, ActivationStats],
    timestep_bin: int = 0,
    weights: Sequence[float] = (1.0,),
) -> Iterator[None]:
    """Add to `stats` what flows into its layers while the block runs.

    The batch is cut into as many equal parts, guidance branches, as there are weights. Layers
    that are called one after another with the same tensor (q, k and v) come to share one
    statistic, summed once.
    """
    recorder = _Recorder(stats, timestep_bin, weights)
    handles = []
    try:
        for target in stats:
            layer = model.get_submodule(target.name)
            handles.append(layer.register_forward_pre_hook(recorder.hook(target)))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """Sums each distinct input once."""

    def __init__(
        self,
        stats: MutableMapping[PruneTarget, ActivationStats],
        timestep_bin: int,
        weights: Sequence[float],
    ) -> None:
        self.stats = stats
        self.timestep_bin = timestep_bin
        self.weights = weights
        self.last_input: Tensor | None = None
        self.last_target: PruneTarget | None = None
        self.added_by: dict[int, PruneTarget] = {}

    def hook(self, target: PruneTarget) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.see(target, args[0])

        return see_input

    def see(self, target: PruneTarget, x: Tensor) -> None:
        if x is self.last_input and self.last_target not in (None, target):
            self._share(target)
        else:
            self._add(target, x)
            self.last_input, self.last_target = x, target

    def _share(self, target: PruneTarget) -> None:
        assert self.last_target is not None
        if self.stats[target] is self.stats[self.last_target]:
            return
        if self.stats[target].weight.any():
            raise RuntimeError(f"{target.name} shares its input only in some calls")
        self.stats[target] = self.stats[self.last_target]

    def _add(self, target: PruneTarget, x: Tensor) -> None:
        stats = self.stats[target]
        if self.added_by.setdefault(id(stats), target) != target:
            raise RuntimeError(f"{target.name} shares its input only in some calls")
        if len(x) % len(self.weights):
            raise RuntimeError(
                f"{target.name} sees {len(x)} rows at once, which cannot be {len(self.weights)} "
                "guidance branches; let the family's predict stack the branches along the batch"
            )
        for branch, weight in zip(x.chunk(len(self.weights)), self.weights, strict=True):
            stats.add(branch, self.timestep_bin, weight)


def demand_reached(stats: Stats) -> None:
    """Raise a ValueError that names the layers which no calibration sample has reached."""
    unreached = [t.name for t, s in stats.items() if not s.weight.any()]
    if unreached:
        reached = [t.name for t, s in stats.items() if s.weight.any()]
        raise ValueError(
            f"{len(unreached)} target layers were never reached by a calibration sample: "
            f"{', '.join(unreached[:8])}. Leave them out (ignore=...), or choose the family "
            f"whose predict() calls them. Reached were: {', '.join(reached[:8]) or 'none'}"
        )


def demand_finite(stats: Stats) -> None:
    """Raise a ValueError that names the layers whose inputs were NaN or infinite."""
    bad = [t.name for t, s in stats.items() if not s.sum_of_squares.isfinite().all()]
    if bad:
        raise ValueError(
            f"NaN or infinite activations flow into {', '.join(bad[:8])}"
            f"{' and others' if len(bad) > 8 else ''}. Check the calibration data and the "
            "checkpoint; a float16 model may need bfloat16 or float32."
        )


def merge_ranks_(stats: Stats) -> None:
    """Add up the statistics of all ranks, by one summed reduction of one vector."""
    vectors = [statistic.pack() for statistic in stats.values()]
    summed = sum_over_ranks(torch.cat(vectors)).split([len(vector) for vector in vectors])
    for statistic, vector in zip(stats.values(), summed, strict=True):
        statistic.unpack_(vector)
