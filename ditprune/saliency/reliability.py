"""How far to trust the calibrated activations, by how much they change over the timesteps."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.saliency.base import Saliency
from ditprune.saliency.energy import rms_by_bin


@dataclass(frozen=True)
class ReliableEnergy(Saliency):
    """|W_ij| RMS(X_j)^alpha, alpha being the reliability of the layer's RMS over timesteps.

    Wanda's score where all timesteps agree which channels are loud (alpha = 1), magnitude where
    none tells about another (alpha = 0). If log RMS is a channel's own level plus noise of the
    timestep, both normal, alpha makes the expected energy at a timestep not seen. (Own proposal.)
    It needs several timestep bins (`num_timestep_bins`); of one, alpha is 1.
    """

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return |W| RMS(X)^alpha."""
        activation = stats.rms().to(weight.device).pow(reliability(stats)).float()
        return weight.float().abs() * activation


def reliability(stats: ActivationStats) -> float:
    """Return (MSB - MSW) / MSB, within [0, 1], of z_tj = log RMS of channel j in timestep bin t.

    MSB is the mean square between channels, T Var_j(mean_t z); MSW that within them, of what
    remains of z after the mean of its bin and that of its channel. It is the intraclass
    correlation of means, ICC(3, k) of Shrout & Fleiss 1979. Dead channels do not count.
    """
    rms = rms_by_bin(stats)
    z = rms[:, (rms > 0).all(0)].log()
    num_bins, num_channels = z.shape
    if num_bins < 2 or num_channels < 2:
        return 1.0
    between = num_bins * z.mean(0).var().item()
    residual = z - z.mean(0) - z.mean(1, keepdim=True) + z.mean()
    within = residual.square().sum().item() / ((num_channels - 1) * (num_bins - 1))
    return max(0.0, 1.0 - within / between) if between > 0 else 1.0
