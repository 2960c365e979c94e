"""One transformer block at a time: its statistics, after what was done to the blocks before."""

import copy
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditprune.activations import ActivationStats, Stats, demand_finite, demand_reached, merge_ranks_
from ditprune.calibration import (
    Observation,
    Weights,
    demand_samples,
    evaluating,
    single_samples,
)
from ditprune.distributed import share_of_rank
from ditprune.families import Batch, Conditional, Family
from ditprune.families.conditional import branches_of
from ditprune.targets import PruneTarget

Answers = list[Any]
"""What a block returned for one sample, call by call."""
Follow = Literal["dense", "pruned", "both"]
Layers = list[PruneTarget]
"""Layers of one block that are called one after another with the same input."""


@dataclass(frozen=True)
class Link:
    """One block of a model."""

    layers: list[Layers]
    """Its targets, in the order in which it calls them; of several calls, the first counts."""
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
                again = repeat(heard[self.blocks[other].siblings])
                stack.enter_context(replacing_forward(other, again))
            yield

    def asking(self, wanted: Collection[PruneTarget]) -> "Chain":
        """Return the same blocks, where only some layers are asked for."""
        links = {
            block: replace(link, layers=[kept for g in link.layers if (kept := among(g, wanted))])
            for block, link in self.blocks.items()
        }
        return replace(self, blocks=links)

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
    with evaluating(model):
        yield from Walk.of(model, batches, family, weights, observation).stats(follow)


@dataclass(frozen=True)
class Walk:
    """The samples on their way through the blocks, guidance branch by guidance branch."""

    model: nn.Module
    predict: Callable[[Batch], Tensor]
    samples: Sequence[Batch]
    chain: Chain
    weights: Weights
    observation: Observation

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Iterable[Batch],
        family: Family,
        weights: Weights,
        observation: Observation,
        more_blocks: Iterable[str] = (),
    ) -> "Walk":
        """Find the way by calling the model; `more_blocks` are those without a target."""
        like = next(iter(weights.values())).new_empty(0)
        everything = list(single_samples(batches))
        demand_samples(bool(everything))

        def predict(sample: Batch) -> Tensor:
            return family.predict(model, sample.like(like))

        first = single_calls(family, everything[0])[0]
        chain = survey(model, partial(predict, first), list(weights), more_blocks)
        samples = [s for whole in share_of_rank(everything) for s in single_calls(family, whole)]
        return cls(model, predict, samples, chain, weights, observation)

    def stats(self, follow: Follow) -> Generator[Stats, None, None]:
        """Yield the statistics of block after block, as `calibrate_blocks` does."""
        return self.dense() if follow == "dense" else self.pruned(follow == "both")

    def dense(self) -> Generator[Stats, None, None]:
        """Yield the statistics of every block, all its layers at once."""
        heard: list[Heard] = [{} for _ in self.samples]
        for block, link in self.chain.blocks.items():
            stats = self.empty([target for group in link.layers for target in group])
            after = []
            for sample, before in zip(self.samples, heard, strict=True):
                with self.observation.of(sample, self.model, stats):
                    after.append(self.ask(block, sample, before))
            heard = after
            if stats:
                yield finish_(stats)

    def pruned(self, with_dense: bool) -> Generator[Stats, None, None]:
        """Yield the statistics of every layer, after what was done to those before it."""
        if with_dense:
            self.chain.demand_closed()
        heard: list[Heard] = [{} for _ in self.samples]
        dense_heard = heard
        for block, link in self.chain.blocks.items():
            dense_block = copy.deepcopy(block) if with_dense else block
            for targets in link.layers:
                stats = self.empty(targets, with_dense)
                for sample, before, dense_before in zip(
                    self.samples, heard, dense_heard, strict=True
                ):
                    dense: list[Tensor] = []
                    if with_dense:
                        layer = relative(dense_block, targets[0])
                        with standing_in(block, dense_block), hearing_inputs(layer, dense):
                            self.ask(block, sample, dense_before)
                    with self.observation.of(sample, self.model, stats, dense):
                        self.ask(block, sample, before)
                yield finish_(stats)
            if with_dense:
                with standing_in(block, dense_block):
                    dense_heard = self.ask_all(block, dense_heard)
            heard = self.ask_all(block, heard)

    def empty(
        self, targets: Layers, with_dense: bool = False
    ) -> dict[PruneTarget, ActivationStats]:
        """Return statistics of nothing for some layers."""
        return self.observation.empty({t: self.weights[t] for t in targets}, with_dense)

    def ask_all(self, block: nn.Module, heard: Sequence[Heard]) -> list[Heard]:
        """Return what was said last, for every sample, after a block has answered."""
        pairs = zip(self.samples, heard, strict=True)
        return [self.ask(block, sample, before) for sample, before in pairs]

    def ask(self, block: nn.Module, sample: Batch, before: Heard) -> Heard:
        """Return what was said last, for one sample, after a block has answered."""
        return self.chain.ask(block, partial(self.predict, sample), before)


def single_calls(family: Family, sample: Batch) -> list[Batch]:
    """Return a sample's guidance branches, if the family calls the model for each of them.

    A call ends with the answer of the block that is asked, while a later branch would come only
    after all of the blocks behind it.
    """
    if not isinstance(family, Conditional) or isinstance(sample.condition, Tensor):
        return [sample]
    return [sample._replace(condition=branch) for branch in branches_of(sample.condition)]


def finish_(stats: Stats) -> Stats:
    """Merge the ranks' statistics, and check them."""
    merge_ranks_(stats)
    demand_finite(stats)
    demand_reached(stats)
    return stats


def survey(
    model: nn.Module,
    call: Callable[[], object],
    targets: Sequence[PruneTarget],
    more_blocks: Iterable[str] = (),
) -> Chain:
    """Find the order of blocks and layers by calling the model once; see if it is a chain."""
    names = [*(target.block_name for target in targets), *more_blocks]
    blocks = {name: model.get_submodule(name) for name in names}
    heard: dict[nn.Module, Answers] = {}
    order = CallOrder()
    handles = [block.register_forward_hook(partial(note, heard)) for block in blocks.values()]
    handles += [
        model.get_submodule(t.name).register_forward_pre_hook(partial(order.note, t))
        for t in targets
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    wanted = dict.fromkeys(target.block_name for target in targets)
    demand_called([name for name in wanted if blocks[name] not in heard])
    paths = {block: name for name, block in blocks.items()}
    links = {
        block: Link(
            [group for group in order.groups if group[0].block_name == paths[block]],
            paths[block].rpartition(".")[0],
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


class CallOrder:
    """Groups layers in the order of their calls: those called with one tensor together."""

    def __init__(self) -> None:
        """Begin with no call."""
        self.groups: list[Layers] = []
        self.seen: set[PruneTarget] = set()
        self.last: tuple[Tensor, str] | None = None

    def note(self, target: PruneTarget, layer: nn.Module, args: Any) -> None:
        """Remember what flows into a layer until the next one is called."""
        if target in self.seen:
            return
        # Cross-attentions of all blocks hear the same text; statistics come block by block.
        x, block = args[0], target.block_name
        if self.last is None or x is not self.last[0] or block != self.last[1]:
            self.groups.append([])
        self.groups[-1].append(target)
        self.seen.add(target)
        self.last = x, block


def among(group: Layers, wanted: Collection[PruneTarget]) -> Layers:
    """Return the layers of a group that are wanted."""
    return [target for target in group if target in wanted]


def note(heard: dict[nn.Module, Answers], block: nn.Module, args: Any, output: Any) -> None:
    """Remember what a block returned."""
    heard.setdefault(block, []).append(keep(output))


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


def repeat(answers: Answers) -> Callable[..., Any]:
    """Return a function that gives copies of the answers, one at each call, where it is asked."""
    calls = iter(answers)

    def forward(*args: Any, **kwargs: Any) -> Any:
        device = next(tensors_in([args, *kwargs.values()])).device
        return map_tensors(lambda x: x.to(device, copy=True), next(calls))

    return forward


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tuple or a list, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


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
