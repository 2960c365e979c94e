"""How different two images look (Zhang et al. 2018, arXiv 1801.03924), by AlexNet."""

from functools import cached_property

from jaxtyping import Float64, UInt8
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import AlexNet_Weights

from ditprune.metrics.features import measuring, weights_hash
from ditprune.metrics.frozen import Frozen
from ditprune.metrics.paired import PairedMetric, demand_pairs
from ditprune.metrics.pickled import loading, origin, read_tensors
from ditprune.metrics.pretrained import in_colour

URL = AlexNet_Weights.IMAGENET1K_V1.url
SMALLEST_SIDE = 31
"""AlexNet's second pooling has nothing to pool below."""
WHERE_FROM = (
    f"Download {URL} and give LPIPS its local path as weights=; without weights= it is downloaded "
    "from there"
)


class LPIPS(Frozen, PairedMetric):
    """LPIPS 0.1 with AlexNet, as most report it; 0 for equal images, and about 1 at most.

    The linear layers on top are the authors', and come with torchmetrics.
    """

    def __init__(self, weights: str | None = None) -> None:
        """Take torchvision's AlexNet from a local path, or None to download it once."""
        self.weights = weights

    def load(self) -> _LPIPS:
        """Return torchmetrics' network."""
        return load_lpips(self.weights)

    @cached_property
    def name(self) -> str:
        """Return `lpips/alex/` and the hash of the weights."""
        return f"lpips/alex/{weights_hash(self.network)}"

    def compare(
        self, images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "_ _ _ _"]
    ) -> Float64[Tensor, " n"]:
        """Return the distance of each image to the other of the same place, on the CPU.

        Raises:
            ValueError: if the shapes differ, there are no images, or they are too small.
        """
        demand_pairs(images, others, SMALLEST_SIDE)
        with measuring(self.device):
            x, y = (in_colour(side).to(self.device) / 255 for side in (images, others))
            distances: Tensor = self.network(x, y, normalize=True)
        return distances.flatten().double().cpu()


def load_lpips(weights: str | None) -> _LPIPS:
    """Return the network with AlexNet from a local path or torchvision's own address.

    Raises:
        ValueError: if the weights cannot be had, or are not AlexNet's.
    """
    with loading("AlexNet's weights", origin(weights, URL), WHERE_FROM):
        state = read_tensors(weights, URL)
        network = _LPIPS(net="alex", pnet_rand=True)
        # The slices' layers have kept their numbers; whatever the file lacks is an error here.
        names = {name: in_torchvision(name) for name in network.net.state_dict()}
        network.net.load_state_dict({new: state[old] for new, old in names.items() if old in state})
    return network.eval()


def in_torchvision(name: str) -> str:
    """Return the name in AlexNet of a weight of the slices: `slice2.3.bias`, `features.3.bias`."""
    return f"features.{name.partition('.')[2]}"
