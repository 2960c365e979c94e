"""A text-to-image pipeline of diffusers as a LightningModule."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor, nn

from ditprune.diffusers_pipeline import conditional_family, denoiser_of, load_pipeline
from ditprune.families import Batch, Conditional
from ditprune.lit.run_folder import run_folder
from ditprune.points import TrajectoryPoints
from ditprune.prompt_cache import encode_once
from ditprune.prompts import embeds_guidance, guidance


class PipelineModule(L.LightningModule):
    """A text-to-image pipeline of diffusers: draws images for prompts, and tells how it does.

    Its transformer is a submodule, and on the module's device. The rest of the pipeline comes
    there only while it is needed, so that text encoders leave the memory to the calibration.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        family: Conditional | None = None,
        guidance_scale: float = 3.5,
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
        options: dict[str, Any] | None = None,
        prompts_folder: str | None = None,
    ) -> None:
        """Hold a pipeline.

        Args:
            pipeline: with a transformer or a unet.
            family: of that network; None finds it by its class.
            guidance_scale: of classifier-free guidance, of which up to 1 is none (Z-Image: up to
                0); or the one that a distilled model hears.
            num_inference_steps: denoising steps of one image.
            height: of the images in pixels; None is the pipeline's own.
            width: of the images in pixels; None is the pipeline's own.
            options: what else the pipeline's call takes, `max_sequence_length` for instance.
            prompts_folder: where encoded prompts are kept, and points that were reached from
                them; None is `prompts` in the run folder.

        Raises:
            ValueError: if the pipeline has neither, or no family knows it.
        """
        super().__init__()
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.transformer: Any = denoiser_of(pipeline)
        self.family = (family or conditional_family(self.transformer)).with_options(options or {})
        self.scheduler = pipeline.scheduler
        """That of the sampling; its timesteps are set as soon as prompts are encoded."""
        self.guidance_scale = guidance_scale
        self.prompts_folder = prompts_folder
        size = {"height": height, "width": width}
        self.options = {"num_inference_steps": num_inference_steps, **size, **(options or {})}
        if embeds_guidance(self.transformer):
            self.options["guidance_scale"] = guidance_scale

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        family: Conditional | None = None,
        guidance_scale: float = 3.5,
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
        options: dict[str, Any] | None = None,
        prompts_folder: str | None = None,
    ) -> "PipelineModule":
        """Load a pipeline, in the dtype of its stored transformer.

        Args:
            source: name of a zoo model, folder in diffusers' layout, or hub id.
            family: of its transformer; None finds it by its class.
            guidance_scale: of classifier-free guidance, of which up to 1 is none (Z-Image: up to
                0); or the one that a distilled model hears.
            num_inference_steps: denoising steps of one image.
            height: of the images in pixels; None is the pipeline's own.
            width: of the images in pixels; None is the pipeline's own.
            options: what else the pipeline's call takes, `max_sequence_length` for instance.
            prompts_folder: where encoded prompts are kept, and points that were reached from
                them; None is `prompts` in the run folder.

        Raises:
            ValueError: if it cannot be loaded, has no transformer, or no family knows it.
        """
        pipeline = load_pipeline(source)
        settings = (guidance_scale, num_inference_steps, height, width, options, prompts_folder)
        return cls(pipeline, family, *settings)

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance has a branch of its own."""
        neutral = self.family.neutral_scale
        return self.guidance_scale > neutral and not embeds_guidance(self.transformer)

    @torch.no_grad()
    def sample(
        self, condition: Int[Tensor, " b"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "b c h w"]:
        """Let the pipeline draw images in [-1, 1] for some of the datamodule's prompts.

        Each has a generator of its own. What a pipeline does only with several prompts at once,
        as padding to the longest, depends on those beside it.
        """
        prompts = [self.trainer.datamodule.prompts[i] for i in condition.tolist()]  # type: ignore[attr-defined]
        scale = self.guidance_scale if self.is_guided else 0.0
        options = {**guidance(self.pipeline, scale), **self.options}
        if isinstance(negative := options.get("negative_prompt"), str):
            options["negative_prompt"] = [negative] * len(prompts)
        with self._whole_pipeline() as pipeline:
            drawn = pipeline(
                prompt=prompts, generator=list(generators), output_type="pt", **options
            )
        images: Tensor = drawn.images * 2 - 1
        return images.float()

    def trajectory_points(
        self, conditions: Sequence[str], num_samples: int, seed: int
    ) -> list[Batch]:
        """Return calibration samples from the sampling of these prompts; see `TrajectoryPoints`."""
        folder = Path(self.prompts_folder or run_folder(self) / "prompts")
        with self._whole_pipeline() as pipeline:
            encoded = encode_once(
                folder, pipeline, self.family, conditions, guided=self.is_guided, **self.options
            )
        self.scheduler = encoded.scheduler
        return TrajectoryPoints(
            self.transformer, self.family, encoded, self.guidance_scale, num_samples, seed, folder
        ).reach()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Do nothing: images are drawn and measured by EvaluationCallback."""

    @contextmanager
    def _whole_pipeline(self) -> Iterator[DiffusionPipeline]:
        """Bring the rest of the pipeline to the transformer's device while the block runs."""
        rest = [
            part
            for part in self.pipeline.components.values()
            if isinstance(part, nn.Module) and part is not self.transformer
        ]
        # Validation runs in inference mode, whose tensors calibration could not use.
        with torch.inference_mode(False), torch.no_grad():
            for part in rest:
                part.to(self.transformer.device)
            try:
                yield self.pipeline
            finally:
                for part in rest:
                    part.cpu()
