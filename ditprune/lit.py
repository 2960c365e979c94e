"""Lightning modules: those that trained the zoo, and one that holds a pipeline of diffusers.

They are ordinary ones, which know nothing of pruning.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ditprune.diffusers_pipeline import conditional_family, denoiser_of, load_pipeline
from ditprune.families import Batch, Conditional, DiT, Family
from ditprune.points import TrajectoryPoints
from ditprune.prompt_cache import encode_once
from ditprune.prompts import embeds_guidance, guidance
from ditprune.sampling import draw_noise, sample_latents
from ditprune.zoo import load_pretrained
from ditprune.zoo.digits import DigitClassifier

LabelledBatch = Sequence[Tensor]
"""Images in [-1, 1] [b, c, h, w], and their labels [b]: what a DataLoader makes of pairs."""


class DenoiserModule(L.LightningModule):
    """A class-conditional denoiser with its scheduler: trains, validates and samples."""

    def __init__(
        self,
        transformer: nn.Module,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        family: Family = DiT(),
        guidance_scale: float = 1.5,
        num_inference_steps: int = 25,
        learning_rate: float = 1e-3,
        num_warmup_steps: int = 200,
        label_dropout: float = 0.1,
    ) -> None:
        """Hold the parts.

        Args:
            transformer: predicts the noise, from latents, timesteps and class labels.
            scheduler: its noise schedule, which also steps when sampling.
            vae: decodes latents to images; None where the transformer works on pixels.
            family: how to call the transformer for every guidance branch.
            guidance_scale: of classifier-free guidance when sampling; 1 is no guidance.
            num_inference_steps: denoising steps of one image.
            learning_rate: AdamW's peak, after the warm-up; it decays to 0 along a cosine.
            num_warmup_steps: optimizer steps of linear warm-up.
            label_dropout: share of the labels that are trained as the null class.
        """
        super().__init__()
        self.transformer: Any = transformer
        self.scheduler = scheduler
        self.vae = vae
        self.family = family
        self.guidance_scale = guidance_scale
        self.num_inference_steps = num_inference_steps
        self.learning_rate = learning_rate
        self.num_warmup_steps = num_warmup_steps
        self.label_dropout = label_dropout

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        family: Family = DiT(),
        guidance_scale: float = 1.5,
        num_inference_steps: int = 25,
    ) -> "DenoiserModule":
        """Load transformer, scheduler and decoder.

        Args:
            source: name of a zoo model, folder in diffusers' layout, or hub id.
            family: how to call the transformer for every guidance branch.
            guidance_scale: of classifier-free guidance when sampling; 1 is no guidance.
            num_inference_steps: denoising steps of one image.
        """
        return cls(
            *load_pretrained(source),
            family=family,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
        )

    @torch.no_grad()
    def sample(
        self, condition: Int[Tensor, " b"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "b c h w"]:
        """Draw one image in [-1, 1] for each class, from a generator of its own."""
        config = self.transformer.config
        noise = draw_noise((config.in_channels, *[config.sample_size] * 2), generators)
        latents = sample_latents(
            self.transformer,
            self.family,
            self.scheduler,
            noise.to(self.device, self.transformer.dtype),
            condition.to(self.device),
            generators,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
        )
        return self._decode(latents).clamp(-1, 1)

    def _decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        if self.vae is None:
            return latents
        images: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return images

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Float[Tensor, ""]:
        """Return the noise prediction error (Ho et al. 2020, Eq. 14) at random timesteps."""
        images, labels = batch
        loss = self._loss(images, self._drop(labels))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _drop(self, labels: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Replace some labels by the null class, on which guidance relies.

        diffusers' blocks would drop theirs independently of each other, so that the null class
        of the whole model would hardly ever be trained; eval mode keeps them from it.
        """
        self.transformer.eval()
        dropped = torch.rand(labels.shape, device=labels.device) < self.label_dropout
        return labels.masked_fill(dropped, self.transformer.config.num_embeds_ada_norm)

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """Log the noise prediction error on images that were not trained on."""
        images, labels = batch
        generator = torch.Generator().manual_seed(batch_idx)
        loss = self._loss(images, labels, generator)
        self.log("val/loss", loss, batch_size=len(labels), sync_dist=True)

    def _loss(
        self,
        images: Float[Tensor, "b c h w"],
        labels: Int[Tensor, " b"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        noise = torch.randn(images.shape, generator=generator).to(images)
        num_timesteps = self.scheduler.config.num_train_timesteps
        timestep = torch.randint(num_timesteps, (len(images),), generator=generator).to(labels)
        noised = self.scheduler.add_noise(images, noise, timestep)
        prediction = self.transformer(noised, timestep=timestep, class_labels=labels).sample
        return F.mse_loss(prediction[:, : images.shape[1]], noise)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with a linear warm-up and a cosine decay."""
        optimizer = AdamW(self.transformer.parameters(), self.learning_rate, weight_decay=0.0)
        total = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            decay = 0.5 + 0.5 * math.cos(math.pi * min(step / total, 1))
            return min(1, (step + 1) / self.num_warmup_steps) * decay

        schedule: LRSchedulerConfigType = {
            "scheduler": LambdaLR(optimizer, factor),
            "interval": "step",
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}


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
            guidance_scale: of classifier-free guidance, of which up to 1 is none; or the one that
                a distilled model hears.
            num_inference_steps: denoising steps of one image.
            height: of the images in pixels; None is the pipeline's own.
            width: of the images in pixels; None is the pipeline's own.
            options: what else the pipeline's call takes, `max_sequence_length` for instance.
            prompts_folder: where encoded prompts are kept; None is `prompts` in the run folder.

        Raises:
            ValueError: if the pipeline has neither, or no family knows it.
        """
        super().__init__()
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.transformer: Any = denoiser_of(pipeline)
        self.family = family or conditional_family(self.transformer)
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
            source: folder in diffusers' layout, or hub id.
            family: of its transformer; None finds it by its class.
            guidance_scale: of classifier-free guidance, of which up to 1 is none; or the one that
                a distilled model hears.
            num_inference_steps: denoising steps of one image.
            height: of the images in pixels; None is the pipeline's own.
            width: of the images in pixels; None is the pipeline's own.
            options: what else the pipeline's call takes, `max_sequence_length` for instance.
            prompts_folder: where encoded prompts are kept; None is `prompts` in the run folder.

        Raises:
            ValueError: if it cannot be loaded, has no transformer, or no family knows it.
        """
        pipeline = load_pipeline(source)
        settings = (guidance_scale, num_inference_steps, height, width, options, prompts_folder)
        return cls(pipeline, family, *settings)

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance has a branch of its own."""
        return self.guidance_scale > 1 and not embeds_guidance(self.transformer)

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

    def trajectory_points(self, prompts: Sequence[str], num_samples: int, seed: int) -> list[Batch]:
        """Return calibration samples from the sampling of these prompts; see `TrajectoryPoints`."""
        folder = Path(self.prompts_folder or self._run_folder() / "prompts")
        with self._whole_pipeline() as pipeline:
            encoded = encode_once(
                folder, pipeline, self.family, prompts, guided=self.is_guided, **self.options
            )
        self.scheduler = encoded.scheduler
        return TrajectoryPoints(
            self.transformer, self.family, encoded, self.guidance_scale, num_samples, seed
        ).reach()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Do nothing: images are drawn and measured by EvaluationCallback."""

    def _run_folder(self) -> Path:
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

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


class ClassifierModule(L.LightningModule):
    """Trains the classifier whose features judge the digits."""

    def __init__(self, learning_rate: float = 2e-3) -> None:
        """Make an untrained classifier.

        Args:
            learning_rate: of AdamW.
        """
        super().__init__()
        self.classifier = DigitClassifier()
        self.learning_rate = learning_rate

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Float[Tensor, ""]:
        """Return the cross-entropy on images shifted by up to one pixel."""
        images, labels = batch
        padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
        top, left = torch.randint(3, (2,)).tolist()
        shifted = padded[:, :, top : top + 8, left : left + 8]
        return F.cross_entropy(self.classifier(shifted), labels, label_smoothing=0.05)

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """Log the share of held-out digits that are read rightly."""
        images, labels = batch
        accuracy = (self.classifier(images).argmax(1) == labels).float().mean()
        self.log("val/accuracy", accuracy, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> Optimizer:
        """Return AdamW."""
        return AdamW(self.parameters(), self.learning_rate, weight_decay=1e-2)
