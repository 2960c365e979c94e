"""What a pipeline of diffusers tells its transformer of prompts: nothing is denoised for it."""

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ditprune.diffusers_pipeline import denoiser_of
from ditprune.families import Condition, Conditional
from ditprune.families.conditional import NULL

NO_GUIDANCE, SOME_GUIDANCE = 0.0, 2.0
"""Scales that switch classifier-free guidance off and on in every pipeline."""

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Encoded:
    """Prompts as a transformer hears them, and the sampling that a pipeline prepared for them."""

    condition: Condition
    """Named tensors [prompts, ...], with null twins where there is guidance; or class labels. On
    the CPU; what is alike for all prompts is in memory once."""
    latents_shape: tuple[int, ...]
    """Of one sample, in the transformer's own layout."""
    scheduler: SchedulerMixin
    """With its timesteps as the pipeline set them, before the first step."""


class Branch(NamedTuple):
    """One row of what the transformer is called with."""

    latents: Float[Tensor, "..."]
    condition: dict[str, Tensor]
    """Batches of one."""


class BeforeFirstStep(Exception):
    """Ends a pipeline's run as soon as all has been said."""


@torch.no_grad()
def encode(
    pipeline: DiffusionPipeline,
    family: Conditional,
    prompts: Sequence[str],
    *,
    guided: bool,
    num_inference_steps: int,
    **options: Any,
) -> Encoded:
    """Let the pipeline itself encode prompts, one by one.

    It runs as if to draw an image, up to its first step, while its transformer only writes down
    what it is called with. For the null branch it runs once more, with guidance; so that each
    pipeline's own rule for it holds (SDXL's is zeros, Lumina's has no system prompt).

    Args:
        pipeline: with all of its text encoders.
        family: of its transformer.
        prompts: at least one. Those too long are counted in a warning.
        guided: add the branch that classifier-free guidance leads away from.
        num_inference_steps: denoising steps of one image.
        options: what else the pipeline's call takes: height, width, `negative_prompt`, and of
            models with embedded guidance their `guidance_scale`.

    Raises:
        ValueError: if there are no prompts; if guidance has no branch of its own; if prompts
            differ in length and the model takes no mask.
    """
    if not prompts:
        raise ValueError("there are no prompts to encode")
    warn_of_truncation(pipeline, prompts, options)
    options = {"num_inference_steps": num_inference_steps, **options}
    unguided = {**guidance(pipeline, NO_GUIDANCE), **options}
    heard = [listen(pipeline, family, prompt=prompt, **unguided)[0] for prompt in prompts]
    scheduler = unmoved(pipeline.scheduler)
    conditions = [branch.condition for branch in heard]
    condition = join(conditions)
    if guided:
        asked = {**guidance(pipeline, SOME_GUIDANCE), **options}
        branches = listen(pipeline, family, prompt=prompts[0], **asked)
        condition |= twins(null_among(branches, conditions[0]), conditions)
    return Encoded(condition, tuple(heard[0].latents.shape), scheduler)


def guidance(pipeline: DiffusionPipeline, scale: float) -> dict[str, Any]:
    """Return the arguments that tell a pipeline the scale of classifier-free guidance.

    FLUX and Qwen-Image call it `true_cfg_scale`, and take no empty prompt for granted. Where
    guidance is embedded, `guidance_scale` is an input like any other.
    """
    if "true_cfg_scale" in inspect.signature(pipeline.__call__).parameters:
        return {"true_cfg_scale": scale, "negative_prompt": "" if scale > 1 else None}
    return {} if embeds_guidance(denoiser_of(pipeline)) else {"guidance_scale": scale}


def embeds_guidance(model: Any) -> bool:
    """Tell whether a model has learned guidance, and hears its scale."""
    return bool(model.config.get("guidance_embeds", False))


def listen(pipeline: DiffusionPipeline, family: Conditional, **options: Any) -> list[Branch]:
    """Return what the transformer is called with before the first step, row by row."""
    with calls_before_first_step(pipeline) as calls, suppress(BeforeFirstStep):
        # A generator of its own: the global one is left alone.
        pipeline(**options, generator=torch.Generator().manual_seed(0), output_type="latent")
    return [branch for call in calls for branch in rows(*family.heard(call))]


@contextmanager
def calls_before_first_step(pipeline: DiffusionPipeline) -> Iterator[list[dict[str, Any]]]:
    """Collect the arguments of the transformer's calls; the first step ends the pipeline's run."""
    model, calls = denoiser_of(pipeline), []
    signature = inspect.signature(model.forward)

    def write_down(*args: Any, **kwargs: Any) -> tuple[Any]:
        calls.append(dict(signature.bind(*args, **kwargs).arguments))
        return (next(iter(calls[-1].values())),)  # its latents: of the right shape to go on with

    def stop(*args: Any, **kwargs: Any) -> None:
        raise BeforeFirstStep

    with (
        quiet(pipeline),
        replaced(model, forward=write_down),
        replaced(pipeline.scheduler, step=stop),
    ):
        yield calls


@contextmanager
def replaced(thing: object, **attributes: Any) -> Iterator[None]:
    """Give something other attributes while the block runs."""
    before = {name: vars(thing)[name] for name in attributes if name in vars(thing)}
    vars(thing).update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            vars(thing).pop(name)
        vars(thing).update(before)


@contextmanager
def quiet(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Show neither progress nor a warning for each long prompt while the block runs."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with replaced(pipeline, _progress_bar_config={"disable": True}):
            yield
    finally:
        logging.set_verbosity(verbosity)


def rows(latents: Float[Tensor, "b ..."], condition: Named) -> list[Branch]:
    """Return the rows of a call, on the CPU."""
    on_cpu = {name: x.cpu() for name, x in condition.items()}
    return [
        Branch(latents[i], {name: x[i : i + 1] for name, x in on_cpu.items()})
        for i in range(len(latents))
    ]


def unmoved(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Return a copy of a scheduler that took no step, on the CPU."""
    clone = copy.deepcopy(scheduler)
    for name, value in vars(clone).items():
        if isinstance(value, Tensor):
            setattr(clone, name, value.cpu())
    return clone


def null_among(branches: Sequence[Branch], condition: Named) -> Named:
    """Return the branch that is not the conditional one; pipelines differ in their order."""
    if len(branches) != 2:
        raise ValueError(
            f"asked for guidance, the pipeline called its model for {len(branches)} branch(es) in "
            "place of 2: this model is not guided that way. Use guidance_scale <= 1 (guided=False)"
        )
    return max((branch.condition for branch in branches), key=lambda it: distance(it, condition))


def distance(one: Named, other: Named) -> float:
    """Return how far conditions are apart."""
    pairs = [(x, other[name]) for name, x in one.items()]
    return sum(
        (x.double() - y.double()).abs().sum().item() if x.shape == y.shape else float("inf")
        for x, y in pairs
    )


def twins(null: Named, conditions: Sequence[Named]) -> dict[str, Tensor]:
    """Return null tensors for all prompts, but for those that equal every prompt's own."""
    return {
        NULL + name: x.expand(len(conditions), *x.shape[1:])
        for name, x in null.items()
        if not all(torch.equal(x, condition[name]) for condition in conditions)
    }


def join(conditions: Sequence[Named]) -> dict[str, Tensor]:
    """Return one named tensor of all prompts; shorter ones are padded, if a mask tells where.

    Raises:
        ValueError: if lengths differ and there is no mask.
    """
    joined = {name: stacked([each[name] for each in conditions]) for name in conditions[0]}
    ragged = [
        n for n in joined if any(joined[n].shape[1:] != each[n].shape[1:] for each in conditions)
    ]
    if ragged and not any(name.endswith("mask") for name in ragged):
        raise ValueError(
            f"prompts differ in the length of {', '.join(ragged)}, and the model takes no mask "
            "that would tell: prune with prompts of one length"
        )
    return joined


def stacked(values: Sequence[Tensor]) -> Tensor:
    """Concatenate batches of one, padded with zeros to the longest; equal ones are held once."""
    if all(torch.equal(value, values[0]) for value in values):
        return values[0].expand(len(values), *values[0].shape[1:])
    if values[0].ndim < 2:
        return torch.cat(list(values))
    longest = max(value.shape[1] for value in values)
    return torch.cat([padded(value, longest) for value in values])


def padded(value: Tensor, length: int) -> Tensor:
    """Append zeros to the second dimension."""
    return F.pad(value, [0, 0] * (value.ndim - 2) + [0, length - value.shape[1]])


def warn_of_truncation(
    pipeline: DiffusionPipeline, prompts: Sequence[str], options: Mapping[str, Any]
) -> None:
    """Warn once for each text encoder of how many prompts it hears the beginning alone."""
    for name, tokenizer in pipeline.components.items():
        if not hasattr(tokenizer, "model_max_length"):
            continue
        limit = max_tokens(pipeline, tokenizer, options)
        tokens = tokenizer(list(prompts), verbose=False).input_ids
        count = sum(len(each) > limit for each in tokens)
        if count:
            warnings.warn(
                f"{count} of {len(prompts)} prompts have more than the {limit} tokens that "
                f"{name} lets through: the rest of them is not heard",
                stacklevel=3,
            )


def max_tokens(pipeline: DiffusionPipeline, tokenizer: Any, options: Mapping[str, Any]) -> int:
    """Return after how many tokens a prompt is cut: CLIP's own number, else the pipeline's."""
    parameter = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    of_pipeline = options.get("max_sequence_length", parameter.default if parameter else None)
    is_clip = type(tokenizer).__name__.startswith("CLIP")
    return tokenizer.model_max_length if is_clip or of_pipeline is None else of_pipeline
