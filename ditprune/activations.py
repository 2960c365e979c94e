"""What flows into a layer, summed: means, energies, and where asked the Gram matrix."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
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
        with_dense: bool = False,
    ) -> None:
        """Start from nothing, for T timestep bins; with matrices only where they are asked for."""
        shape = (num_timestep_bins, num_inputs)
        self.sum: Float64[Tensor, "T in"] = torch.zeros(shape, dtype=torch.float64, device=device)
        self.sum_of_squares: Float64[Tensor, "T in"] = torch.zeros_like(self.sum)
        self.weight: Float64[Tensor, " T"] = torch.zeros(num_timestep_bins, dtype=torch.float64)
        """The weights of the tokens, summed: their number where all weigh 1."""
        self.gram: Float64[Tensor, "in in"] | None = None
        """Sum of x x^T over all tokens: the Hessian of the layer's squared output error."""
        if with_gram:
            self.gram = self.sum.new_zeros(num_inputs, num_inputs)
        self.cross: Float64[Tensor, "in in"] | None = None
        """Sum of d x^T, where d flows in in the dense model and x in the pruned one."""
        self.dense_sum: Float64[Tensor, " in"] = self.sum.new_zeros(num_inputs)
        if with_dense:
            self.cross = self.sum.new_zeros(num_inputs, num_inputs)

    def add(
        self,
        x: Float[Tensor, "..."],
        timestep_bin: int = 0,
        weight: float = 1.0,
        dense: Float[Tensor, "..."] | None = None,
    ) -> None:
        """Count the tokens of one call: [tokens, in], [b, tokens, in] or [b, in, h, w].

        `dense` is what flows in at the same place of the dense model; None where it is the same.
        """
        tokens = tokens_of(x)
        self.sum[timestep_bin] += weight * tokens.sum(0).double()
        self.sum_of_squares[timestep_bin] += weight * tokens.square().sum(0).double()
        self.weight[timestep_bin] += weight * len(tokens)
        if self.gram is not None:
            self.gram += weight * (tokens.T @ tokens).double()
        if self.cross is not None:
            there = tokens if dense is None else tokens_of(dense)
            self.cross += weight * (there.T @ tokens).double()
            self.dense_sum += weight * there.sum(0).double()

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

    def cross_moment(self) -> Float64[Tensor, "in in"]:
        """Return the mean of d x^T, where d flows in in the dense model.

        Raises:
            RuntimeError: if the dense model was not followed.
        """
        if self.cross is None:
            raise RuntimeError("these statistics were recorded without the dense model's inputs")
        return self.cross / self.weight.sum().item()

    def dense_mean(self) -> Float64[Tensor, " in"]:
        """Return the mean of what flows in in the dense model."""
        return self.dense_sum / self.weight.sum().item()

    def pack(self) -> Float64[Tensor, " n"]:
        """Return the state as one vector, for a summed reduction over ranks."""
        return torch.cat([self.weight.to(self.sum), *(part.flatten() for part in self._parts())])

    def unpack_(self, packed: Float64[Tensor, " n"]) -> None:
        """Replace the state by what `pack` returned."""
        parts = self._parts()
        weight, *values = packed.split([len(self.weight), *(part.numel() for part in parts)])
        self.weight = weight.cpu()
        whole = [value.reshape(p.shape).clone() for value, p in zip(values, parts, strict=True)]
        self.sum, self.sum_of_squares, self.dense_sum, *matrices = whole
        if self.gram is not None:
            self.gram = matrices.pop(0)
        if self.cross is not None:
            self.cross = matrices.pop(0)

    def _parts(self) -> list[Tensor]:
        matrices = [matrix for matrix in (self.gram, self.cross) if matrix is not None]
        return [self.sum, self.sum_of_squares, self.dense_sum, *matrices]


def tokens_of(x: Float[Tensor, "..."]) -> Float[Tensor, "tokens in"]:
    """Return the tokens of one call as rows, in float32; pixels of a feature map are tokens."""
    channels_last = x.movedim(1, -1) if x.ndim == 4 else x
    return channels_last.reshape(-1, channels_last.shape[-1]).float()


Stats = Mapping[PruneTarget, ActivationStats]


@contextmanager
def recording(
    model: nn.Module,
    stats: MutableMapping[PruneTarget, ActivationStats],
    timestep_bin: int = 0,
    weight: float = 1.0,
    dense: Iterable[Tensor] = (),
) -> Iterator[None]:
    """Add to `stats` what flows into its layers while the block runs.

    Layers that are called one after another with the same tensor (q, k and v) come to share one
    statistic, summed once. `weight` is that of every token. `dense` is what flows in at the same
    place of the dense model, call by call: then all of `stats` share one input.
    """
    recorder = _Recorder(stats, timestep_bin, weight, dense)
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
        weight: float,
        dense: Iterable[Tensor],
    ) -> None:
        self.dense = iter(dense)
        self.stats = stats
        self.timestep_bin = timestep_bin
        self.weight = weight
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
        stats.add(x, self.timestep_bin, self.weight, next(self.dense, None))


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
