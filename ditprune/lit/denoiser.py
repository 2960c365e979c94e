"""A class-conditional denoiser: what trained the digits model, and loads others of its kind."""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL, SchedulerMixin
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ditprune.families import Batch, DiT, Family
from ditprune.lit.run_folder import run_folder
from ditprune.points import TrajectoryPoints
from ditprune.prompts import Encoded
from ditprune.sampling import draw_noise, sample_latents
from ditprune.zoo import load_pretrained

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
        noise = draw_noise(self._latents_shape, generators)
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

    def trajectory_points(
        self, conditions: Sequence[int], num_samples: int, seed: int
    ) -> list[Batch]:
        """Return calibration samples from the sampling of these classes; see `TrajectoryPoints`."""
        scheduler = self.scheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(self.num_inference_steps)
        encoded = Encoded(torch.tensor(conditions), self._latents_shape, scheduler)
        return TrajectoryPoints(
            self.transformer,
            self.family,
            encoded,
            self.guidance_scale,
            num_samples,
            seed,
            run_folder(self) / "points",
        ).reach()

    @property
    def _latents_shape(self) -> tuple[int, int, int]:
        config = self.transformer.config
        return config.in_channels, config.sample_size, config.sample_size

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

    def validation_step(self, batch: LabelledBatch | Tensor, batch_idx: int) -> None:
        """Log the noise prediction error on images that were not trained on, if there are any."""
        if isinstance(batch, Tensor):  # labels alone
            return
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
