"""One transformer block at a time: its statistics, after what was done to the blocks before."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
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
class Link:
    """One block of a model."""

    layers: list[Layers]
    """Its target weights, layer after layer; layers of one input together."""
    siblings: str
    """The name of the list it is in."""
    num_calls: int
    """How often one prediction calls it."""


Heard = Mapping[str, Answers]
"""What was said last for one sample, by the blocks of each list."""


@dataclass(frozen=True)
class Chain:
    """The blocks of a model, in the order in which it calls them."""

    blocks: dict[nn.Module, Link]
    closed: bool
    """Whether a block hears of earlier ones only by the last answer of each list of blocks.

    There is one list as a rule; or double and single blocks, or refiners of noise and context,
    and then each of those lists may be heard."""

    def ask(self, block: nn.Module, call: Callable[[], object], heard: Heard) -> Heard:
        """Return what was said last, after a block has answered; those before it only repeat."""
        link = self.blocks[block]
        with self.repeating(block, heard):
            answers = answers_of(block, link.num_calls, call)
        return {**heard, link.siblings: answers}

    @contextmanager
    def repeating(self, block: nn.Module, heard: Heard) -> Iterator[None]:
        """Let the blocks before one repeat what was heard, if that is all the model listens to."""
        earlier = list(takewhile(lambda other: other is not block, self.blocks))
        with ExitStack() as stack:
            for other in earlier if self.closed else []:
                device = next(other.parameters()).device
                again = repeat(heard[self.blocks[other].siblings], device)
                stack.enter_context(replacing_forward(other, again))
            yield

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
        heard: list[Heard] = [{} for _ in self.samples]
        for block, link in self.chain.blocks.items():
            stats = self.observation.empty({t: w for part in link.layers for t, w in part.items()})
            after = []
            for sample, before in zip(self.samples, heard, strict=True):
                with self.observation.of(sample, self.model, stats):
                    after.append(self.ask(block, sample, before))
            heard = after
            yield finish_(stats)

    def pruned(self, with_dense: bool) -> Iterator[Stats]:
        """Yield the statistics of every layer, after what was done to those before it."""
        if with_dense:
            self.chain.demand_closed()
        heard: list[Heard] = [{} for _ in self.samples]
        dense_heard = heard
        for block, link in self.chain.blocks.items():
            dense_block = copy.deepcopy(block) if with_dense else block
            for targets in link.layers:
                stats = self.observation.empty(targets, with_dense)
                for sample, before, dense_before in zip(
                    self.samples, heard, dense_heard, strict=True
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
                    dense_heard = self.ask_all(block, dense_heard)
            heard = self.ask_all(block, heard)

    def ask_all(self, block: nn.Module, heard: Sequence[Heard]) -> list[Heard]:
        """Return what was said last, for every sample, after a block has answered."""
        pairs = zip(self.samples, heard, strict=True)
        return [self.ask(block, sample, before) for sample, before in pairs]

    def ask(self, block: nn.Module, sample: Batch, before: Heard) -> Heard:
        """Return what was said last, for one sample, after a block has answered."""
        return self.chain.ask(block, partial(self.predict, sample), before)


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
        call()
    finally:
        for handle in handles:
            handle.remove()
    demand_called([name for name, block in blocks.items() if block not in heard])
    names = {block: name for name, block in blocks.items()}
    layers = by_input(inputs, weights)
    links = {
        block: Link(
            [group for group in layers if next(iter(group)).block_name == names[block]],
            names[block].rpartition(".")[0],
            len(answers),
        )
        for block, answers in heard.items()
    }
    chain = Chain(links, closed=True)
    return replace(chain, closed=is_closed(chain, call, heard))


def is_closed(
    chain: Chain, call: Callable[[], object], answers: Mapping[nn.Module, Answers]
) -> bool:
    """Tell if every block answers the same when those before it only repeat what was said last."""
    heard: Heard = {}
    for block, expected in answers.items():
        try:
            heard = chain.ask(block, call, heard)
        except Exception:  # it ran before: what it stumbles over is that it hears something else
            return False
        if not same(heard[chain.blocks[block].siblings], expected):
            return False
    return True


def by_input(inputs: Sequence[tuple[PruneTarget, Tensor]], weights: Weights) -> list[Layers]:
    """Group the layers in the order of their calls: those called with one tensor together."""
    groups: list[dict[PruneTarget, Tensor]] = []
    last: tuple[str, Tensor] | None = None
    seen = set()
    for target, x in inputs:
        if target in seen:
            continue
        # Cross-attentions of all blocks hear the same text; statistics come block by block.
        if last is None or x is not last[1] or target.block_name != last[0]:
            groups.append({})
        groups[-1][target] = weights[target]
        last = target.block_name, x
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
    return block.get_submodule(target.place)


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


def same(one: Any, other: Any) -> bool:
    """Tell if two answers are equal, to the bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other)
