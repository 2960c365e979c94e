"""One transformer block at a time: its statistics, after what was done to the blocks before."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

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

Answers = list[Any]
"""What a block returned for one sample, call by call."""


class Chain(NamedTuple):
    """The blocks of a model, in the order in which it calls them."""

    blocks: dict[nn.Module, Weights]
    """The target weights of each block."""
    num_calls: int
    """How often one prediction calls each block."""
    closed: bool
    """Whether a block hears of the blocks before it only by the answer of the last of them."""

    def before(self, index: int) -> list[nn.Module]:
        """Return the blocks that need not run again for the index-th."""
        return list(self.blocks)[:index] if self.closed else []


@torch.no_grad()
def calibrate_blocks(
    model: nn.Module,
    batches: Iterable[Batch],
    family: Family,
    weights: Weights,
    observation: Observation = Observation(),
    *,
    sequential: bool = False,
) -> Iterator[Stats]:
    """Yield the statistics of block after block, in the order in which the model calls them.

    Only one block is held, and run, at a time: those before it repeat the answers that were kept,
    those after it are not reached. With `sequential`, the answers are those of the block as the
    caller left it when asking for the next one; otherwise, of the block as it was.
    """
    like = next(iter(weights.values()))
    everything = [sample.like(like) for sample in single_samples(batches)]
    demand_samples(bool(everything))
    samples = list(share_of_rank(everything))
    answers: list[Answers] = [[] for _ in samples]
    predict = partial(family.predict, model)
    with evaluating(model):
        chain = survey(model, partial(predict, everything[0]), weights)
        for index, (block, targets) in enumerate(chain.blocks.items()):
            ask = partial(ask_block, predict, block, chain.num_calls, chain.before(index))
            stats, heard = observation.empty(targets), []
            for sample, before in zip(samples, answers, strict=True):
                with observation.of(sample, model, stats):
                    heard.append(ask(sample, before))
            merge_ranks_(stats)
            demand_finite(stats)
            demand_reached(stats)
            yield stats
            if sequential:
                heard = list(map(ask, samples, answers))
            answers = heard


def ask_block(
    predict: Callable[[Batch], Tensor],
    block: nn.Module,
    num_calls: int,
    finished: Sequence[nn.Module],
    sample: Batch,
    before: Answers,
) -> Answers:
    """Return what one block answers to a sample, given the answers of the block before it."""
    with repeating(finished, before):
        return answers_of(block, num_calls, partial(predict, sample))


def survey(model: nn.Module, call: Callable[[], Tensor], weights: Weights) -> Chain:
    """Find the order of the blocks by calling the model once, and see if they are a chain."""
    by_name: dict[str, Weights] = {}
    for target, weight in weights.items():
        by_name[target.block_name] = {**by_name.get(target.block_name, {}), target: weight}
    blocks = {model.get_submodule(name): targets for name, targets in by_name.items()}
    heard: dict[nn.Module, Answers] = {}
    handles = [block.register_forward_hook(partial(note, heard)) for block in blocks]
    try:
        prediction = call()
    finally:
        for handle in handles:
            handle.remove()
    demand_called(by_name, [block in heard for block in blocks])
    *earlier, last = heard
    with repeating(earlier, heard[earlier[-1]] if earlier else []):
        closed = torch.equal(call(), prediction)
    return Chain({block: blocks[block] for block in heard}, len(heard[last]), closed)


def note(heard: dict[nn.Module, Answers], block: nn.Module, args: Any, output: Any) -> None:
    """Remember what a block returned."""
    heard.setdefault(block, []).append(keep(output))


def demand_called(names: Iterable[str], called: Sequence[bool]) -> None:
    """Raise a ValueError that names the blocks which the model has not called."""
    missing = [name for name, was_called in zip(names, called, strict=True) if not was_called]
    if missing:
        raise ValueError(
            f"the model never calls {', '.join(missing[:8])} as a module, so its layers cannot be "
            "calibrated block by block. Leave them out (ignore=...), or prune without a repair."
        )


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
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = repeat(answers, next(block.parameters()).device)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


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
