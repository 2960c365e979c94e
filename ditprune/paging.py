"""A model whose blocks are in memory one at a time, and come from disk when they are called."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import diffusers
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ditprune.blocks import replacing_forward
from ditprune.masks import weight_matrix
from ditprune.shards import Shards
from ditprune.targets import PruneTarget

Read = Callable[[str], dict[str, Tensor]]
"""Returns the tensors of a block, by their names inside it."""


def empty_model(shards: Shards) -> nn.Module:
    """Build a model from its configuration, without memory for its parameters.

    Its buffers are those which `from_pretrained` makes: many are in no file.

    Raises:
        ValueError: if it is no model of diffusers, or quantised.
    """
    name = str(shards.config.get("_class_name"))
    kind: Any = getattr(diffusers, name, None)
    if kind is None or "quantization_config" in shards.config:
        raise ValueError(
            f"{shards.folder}/config.json is of {name}, which diffusers {diffusers.__version__} "
            "does not know, or its weights are quantised: give the folder of a transformer in "
            "float32, float16 or bfloat16"
        )
    with parameters_without_memory(), default_dtype(shards.dtype()), torch.random.fork_rng([]):
        model: nn.Module = kind.from_config(shards.config)
    return model.eval()


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Put every parameter that is made while the block runs on the meta device."""

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    handle = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let new tensors have a dtype while the block runs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def load_outside_(
    model: nn.Module, blocks: Sequence[str], shards: Shards, device: torch.device
) -> None:
    """Give all that is in no block its memory, for good."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(
                name, buffer.to(device), name not in module._non_persistent_buffers_set
            )
    names = outside(model.state_dict(), blocks)
    model.load_state_dict(shards.read(names, device), strict=False, assign=True)


def outside(names: Iterable[str], blocks: Sequence[str]) -> list[str]:
    """Return the names of tensors that are in no block."""
    prefixes = tuple(f"{block}." for block in blocks)
    return [name for name in names if not name.startswith(prefixes)]


class Pager:
    """Holds the parameters of one block, and meanwhile reads those of the next."""

    def __init__(self, blocks: Mapping[str, nn.Module], read: Read, thread: ThreadPoolExecutor):
        """Begin without any block."""
        self.blocks = blocks
        self.empty = {name: block.state_dict() for name, block in blocks.items()}
        self.read = read
        self.thread = thread
        self.present: str | None = None
        self.coming: tuple[str, Future[dict[str, Tensor]]] | None = None
        self.unwritten = False
        """Whether the present block was changed, and is nowhere but in memory."""

    def bring(self, name: str) -> None:
        """Let a block come, if it is not there, and the present one go."""
        if name == self.present:
            return
        self.release()
        tensors = self.take(name)
        self.blocks[name].load_state_dict(tensors, assign=True)
        self.present = name
        if (after := self.after(name)) != name:
            self.coming = after, self.thread.submit(self.read, after)

    def release(self) -> None:
        """Let the present block go."""
        if self.unwritten:
            raise RuntimeError(f"{self.present} must be written before another block comes")
        if self.present is not None:
            self.blocks[self.present].load_state_dict(self.empty[self.present], assign=True)
            self.present = None

    def take(self, name: str) -> dict[str, Tensor]:
        """Return a block's tensors, which were read in advance if it is the one after the last."""
        expected, self.coming = self.coming, None
        if expected is not None:
            tensors = expected[1].result()
            if expected[0] == name:
                return tensors
            del tensors  # two blocks at most
        return self.read(name)

    def after(self, name: str) -> str:
        """Return the block that is likely to be needed next; the first one after the last."""
        names = list(self.blocks)
        return names[(names.index(name) + 1) % len(names)]


@contextmanager
def paging(model: nn.Module, blocks: Sequence[str], read: Read) -> Iterator[Pager]:
    """Let blocks come when they, or any layer of theirs, are called while the block of code runs.

    A block whose answers are repeated is not called, and does not come.
    """
    modules = {name: model.get_submodule(name) for name in blocks}
    with ThreadPoolExecutor(1) as thread, ExitStack() as stack:
        pager = Pager(modules, read, thread)
        for name, block in modules.items():
            # DiT's final layer calls the embedder of the first block.
            for layer in block.modules():
                stack.enter_context(replacing_forward(layer, bringing(pager, name, layer.forward)))
        yield pager
        pager.release()
        pager.coming = None


def bringing(pager: Pager, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that lets its block come before."""

    @wraps(forward)
    def come_and_forward(*args: Any, **kwargs: Any) -> Any:
        pager.bring(name)
        return forward(*args, **kwargs)

    return come_and_forward


class PagedWeights(Mapping[PruneTarget, Tensor]):
    """The weights of layers, in memory when they are asked for: then their block comes."""

    def __init__(self, model: nn.Module, targets: Sequence[PruneTarget], pager: Pager) -> None:
        """Hold nothing."""
        self.model = model
        self.targets = dict.fromkeys(targets)
        self.pager = pager

    def __getitem__(self, target: PruneTarget) -> Float[Tensor, "out in"]:
        """Return a layer's weight, which shares the model's memory."""
        if target not in self.targets:
            raise KeyError(target)
        self.pager.bring(target.block_name)
        return weight_matrix(self.model, target)

    def __iter__(self) -> Iterator[PruneTarget]:
        """Iterate over the layers."""
        return iter(self.targets)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.targets)
