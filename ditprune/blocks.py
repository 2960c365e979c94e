"""One transformer block at a time: its statistics, after what was done to the blocks before."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditprune.activations import Stats, demand_finite, demand_reached, merge_ranks_
from ditprune.calibration import (
    Observation,
    Weights,
    demand_samples,
    evaluating,
    single_samples,
)
from ditprune.distributed import share_of_rank
from ditprune.families import Batch, Family
from ditprune.targets import PruneTarget

Answers = list[Any]
"""What a block returned for one sample, call by call."""
Follow = Literal["dense", "pruned", "both"]
Layers = Mapping[PruneTarget, Tensor]
"""Weights of some layers; their shapes differ."""


@dataclass(frozen=True)
class Chain:
    """The blocks of a model, in the order in which it calls them."""

    blocks: dict[nn.Module, list[Layers]]
    """The target weights of each block, layer after layer; layers of one input together."""
    num_calls: int
    """How often one prediction calls each block."""
    closed: bool
    """Whether a block hears of the blocks before it only by the answer of the last of them."""

    def before(self, block: nn.Module) -> list[nn.Module]:
        """Return the blocks that need not run again for this one."""
        order = list(self.blocks)
        return order[: order.index(block)] if self.closed else []

    def demand_closed(self) -> None:
        """Raise a ValueError if the dense model cannot be followed beside the pruned one."""
        if not self.closed:
            raise ValueError(
                "in this model blocks hear of earlier ones by other ways than the block before "
                "(skip connections), so the dense model's inputs cannot be followed beside the "
                "pruned one's: use follow='pruned' or 'dense'"
            )


@torch.no_grad()
def calibrate_blocks(
    model: nn.Module,
    batches: Iterable[Batch],
    family: Family,
    weights: Weights,
    observation: Observation = Observation(),
    *,
    follow: Follow = "dense",
) -> Iterator[Stats]:
    """Yield the statistics of block after block, in the order in which the model calls them.

    Only one block is held, and run, at a time: those before it repeat the answers that were kept,
    those after it are not reached. What flows in follows the dense model, or the model as the
    caller leaves it when asking for the next statistics: then they come layer by layer. With
    `both`, they also tell what flows in at the same place of the dense model.
    """
    like = next(iter(weights.values()))
    everything = [sample.like(like) for sample in single_samples(batches)]
    demand_samples(bool(everything))
    predict = partial(family.predict, model)
    with evaluating(model):
        chain = survey(model, partial(predict, everything[0]), weights)
        samples = list(share_of_rank(everything))
        walk = Walk(model, predict, samples, chain, observation)
        yield from walk.dense() if follow == "dense" else walk.pruned(follow == "both")


@dataclass(frozen=True)
class Walk:
    """The samples on their way through the blocks."""

    model: nn.Module
    predict: Callable[[Batch], Tensor]
    samples: Sequence[Batch]
    chain: Chain
    observation: Observation

    def dense(self) -> Iterator[Stats]:
        """Yield the statistics of every block, all its layers at once."""
        answers: list[Answers] = [[] for _ in self.samples]
        for block, layers in self.chain.blocks.items():
            stats = self.observation.empty({t: w for part in layers for t, w in part.items()})
            heard = []
            for sample, before in zip(self.samples, answers, strict=True):
                with self.observation.of(sample, self.model, stats):
                    heard.append(self.ask(block, sample, before))
            answers = heard
            yield finish_(stats)

    def pruned(self, with_dense: bool) -> Iterator[Stats]:
        """Yield the statistics of every layer, after what was done to those before it."""
        if with_dense:
            self.chain.demand_closed()
        answers: list[Answers] = [[] for _ in self.samples]
        dense_answers = answers
        for block, layers in self.chain.blocks.items():
            dense_block = copy.deepcopy(block) if with_dense else block
            for targets in layers:
                stats = self.observation.empty(targets, with_dense)
                for sample, before, dense_before in zip(
                    self.samples, answers, dense_answers, strict=True
                ):
                    dense: list[Tensor] = []
                    if with_dense:
                        layer = relative(dense_block, next(iter(targets)))
                        with standing_in(block, dense_block), hearing_inputs(layer, dense):
                            self.ask(block, sample, dense_before)
                    with self.observation.of(sample, self.model, stats, dense):
                        self.ask(block, sample, before)
                yield finish_(stats)
            if with_dense:
                with standing_in(block, dense_block):
                    dense_answers = self.ask_all(block, dense_answers)
            answers = self.ask_all(block, answers)

    def ask_all(self, block: nn.Module, answers: Sequence[Answers]) -> list[Answers]:
        """Return what a block answers to every sample, given the answers of the one before."""
        pairs = zip(self.samples, answers, strict=True)
        return [self.ask(block, sample, before) for sample, before in pairs]

    def ask(self, block: nn.Module, sample: Batch, before: Answers) -> Answers:
        """Return what a block answers to one sample."""
        with repeating(self.chain.before(block), before):
            return answers_of(block, self.chain.num_calls, partial(self.predict, sample))


def finish_(stats: Stats) -> Stats:
    """Merge the ranks' statistics, and check them."""
    merge_ranks_(stats)
    demand_finite(stats)
    demand_reached(stats)
    return stats


def survey(model: nn.Module, call: Callable[[], Tensor], weights: Weights) -> Chain:
    """Find the order of blocks and layers by calling the model once; see if it is a chain."""
    blocks = {t.block_name: model.get_submodule(t.block_name) for t in weights}
    heard: dict[nn.Module, Answers] = {}
    inputs: list[tuple[PruneTarget, Tensor]] = []
    handles = [block.register_forward_hook(partial(note, heard)) for block in blocks.values()]
    handles += [
        model.get_submodule(t.name).register_forward_pre_hook(partial(note_input, inputs, t))
        for t in weights
    ]
    try:
        prediction = call()
    finally:
        for handle in handles:
            handle.remove()
    demand_called([name for name, block in blocks.items() if block not in heard])
    *earlier, last = heard
    with repeating(earlier, heard[earlier[-1]] if earlier else []):
        closed = torch.equal(call(), prediction)
    layers = by_input(inputs, weights)
    names = {block: name for name, block in blocks.items()}
    return Chain(
        {b: [g for g in layers if next(iter(g)).block_name == names[b]] for b in heard},
        len(heard[last]),
        closed,
    )


def by_input(inputs: Sequence[tuple[PruneTarget, Tensor]], weights: Weights) -> list[Layers]:
    """Group the layers in the order of their calls: those called with one tensor together."""
    groups: list[dict[PruneTarget, Tensor]] = []
    last_input, seen = None, set()
    for target, x in inputs:
        if target in seen:
            continue
        if x is not last_input:
            groups.append({})
        groups[-1][target] = weights[target]
        last_input = x
        seen.add(target)
    return list(groups)


def note(heard: dict[nn.Module, Answers], block: nn.Module, args: Any, output: Any) -> None:
    """Remember what a block returned."""
    heard.setdefault(block, []).append(keep(output))


def note_input(
    inputs: list[tuple[PruneTarget, Tensor]], target: PruneTarget, layer: nn.Module, args: Any
) -> None:
    """Remember what flows into a layer."""
    inputs.append((target, args[0]))


def demand_called(missing: Sequence[str]) -> None:
    """Raise a ValueError that names the blocks which the model has not called."""
    if missing:
        raise ValueError(
            f"the model never calls {', '.join(missing[:8])} as a module, so its layers cannot be "
            "calibrated block by block. Leave them out (ignore=...), or prune without a repair."
        )


def relative(block: nn.Module, target: PruneTarget) -> nn.Module:
    """Return a layer in a copy of its block."""
    return block.get_submodule(target.name.removeprefix(target.block_name).lstrip("."))


@contextmanager
def hearing_inputs(layer: nn.Module, inputs: list[Tensor]) -> Iterator[None]:
    """Add to `inputs` what flows into a layer while the block runs."""
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        yield
    finally:
        handle.remove()


class _Answered(Exception):
    """The block that was asked has answered; the rest of the model need not run."""


def answers_of(block: nn.Module, num_calls: int, call: Callable[[], object]) -> Answers:
    """Return what a block answers during a call of the model, which ends with its last answer."""
    answers: Answers = []

    def listen(module: nn.Module, args: Any, output: Any) -> None:
        answers.append(keep(output))
        if len(answers) == num_calls:
            raise _Answered

    handle = block.register_forward_hook(listen)
    try:
        with suppress(_Answered):
            call()
    finally:
        handle.remove()
    return answers


@contextmanager
def repeating(blocks: Sequence[nn.Module], answers: Answers) -> Iterator[None]:
    """Let blocks repeat answers, one for each call, in place of running."""
    with ExitStack() as stack:
        for block in blocks:
            device = next(block.parameters()).device
            stack.enter_context(replacing_forward(block, repeat(answers, device)))
        yield


def standing_in(block: nn.Module, other: nn.Module) -> AbstractContextManager[None]:
    """Let another block answer in a block's place."""
    return replacing_forward(block, other.forward)


@contextmanager
def replacing_forward(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace what a block does while the block of code runs."""
    before = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if before is not None:
            block.forward = before


def repeat(answers: Answers, device: torch.device) -> Callable[..., Any]:
    """Return a function that gives copies of the answers, one at each call."""
    calls = iter(answers)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return map_tensors(lambda x: x.to(device, copy=True), next(calls))

    return forward


def keep(output: Any) -> Any:
    """Return a copy of an answer, in the CPU's memory."""
    return map_tensors(lambda x: x.detach().to("cpu", copy=True), output)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Change a tensor, or those of a tuple or a list, however nested."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(change, item) for item in value)
    return value
