"""What metrics with a network have in common: they hold one, frozen, and load it when needed."""

import abc
from functools import cached_property
from typing import Any, TypeVar

import torch

Network = Any
"""A frozen network; its types leave open what a config holds and where a network can move."""

Holder = TypeVar("Holder", bound="Frozen")


class Frozen(abc.ABC):
    """Holds one frozen network, which is loaded on first use.

    Not a module on purpose: a LightningModule that holds one would convert the network to its
    precision, write it to checkpoints and count its weights among its own.
    """

    @abc.abstractmethod
    def load(self) -> Network:
        """Return the network, in float32 and in evaluation mode."""

    @cached_property
    def network(self) -> Network:
        """Return the network; the first call loads it."""
        return self.load()

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return next(self.network.parameters()).device

    def to(self: Holder, device: torch.device | str) -> Holder:
        """Move the network, and return its holder."""
        self.network.to(device)
        return self
