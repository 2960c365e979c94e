"""Lightning modules that train the networks of `shapes-flux`, one after the other."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from diffusers import AutoencoderKL, FluxPipeline
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from safetensors.torch import load_model
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from ditprune.metrics.clip import MEAN, STD
from ditprune.metrics.pretrained import standardized
from ditprune.zoo.pretrained import locate
from ditprune.zoo.shapes import IMAGE_SIZE, UNSAID, Latents, Pictures
from ditprune.zoo.shapes_parts import (
    SHIFT,
    TEXT_LENGTH,
    ShapesReader,
    autoencoder,
    clip_model,
    clip_tokenizer,
    flow_scheduler,
    flux_transformer,
    t5_encoder,
    t5_tokenizer,
)

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
TRANSFORMERS_WEIGHTS = "model.safetensors"


class OneCycle(L.LightningModule):
    """Trains whatever takes gradients with AdamW, along one cycle of learning rates."""

    learning_rate: float

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW, and its learning rate's rise and fall."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = AdamW(trained, self.learning_rate, weight_decay=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(optimizer, self.learning_rate, steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ShapesReaderModule(OneCycle):
    """Trains the network that reads attributes off pictures, and judges those drawn."""

    def __init__(self, learning_rate: float = 2e-3, noise: float = 0.1) -> None:
        """Make an untrained network.

        Args:
            learning_rate: AdamW's highest.
            noise: deviation of what is added to the pictures, so that details count less.
        """
        super().__init__()
        self.reader = ShapesReader()
        self.learning_rate = learning_rate
        self.noise = noise

    def training_step(self, batch: Pictures, batch_idx: int) -> Float[Tensor, ""]:
        """Return the cross-entropy of all attributes that a picture has."""
        images = batch.images + self.noise * torch.randn_like(batch.images)
        heads = zip(self.reader.heads(images).values(), batch.attributes.T, strict=True)
        losses = [F.cross_entropy(logits, truth, ignore_index=UNSAID) for logits, truth in heads]
        return torch.stack(losses).sum()

    def validation_step(self, batch: Pictures, batch_idx: int) -> None:
        """Log the share of pictures whose attributes are all read rightly."""
        heads = zip(self.reader.heads(batch.images).values(), batch.attributes.T, strict=True)
        right = [(logits.argmax(1) == truth) | (truth < 0) for logits, truth in heads]
        accuracy = torch.stack(right).all(0).float().mean()
        self.log("val/accuracy", accuracy, prog_bar=True, batch_size=len(batch.images))


class ShapesClipModule(OneCycle):
    """Trains CLIP on pictures and their captions (Radford et al. 2021)."""

    def __init__(self, learning_rate: float = 2e-3) -> None:
        """Make an untrained network.

        Args:
            learning_rate: AdamW's highest.
        """
        super().__init__()
        self.network = clip_model()
        self.tokenizer = clip_tokenizer()
        self.learning_rate = learning_rate

    @property
    def clip(self) -> "TokenizedClip":
        """What is saved."""
        return TokenizedClip(self.network, self.tokenizer)

    def training_step(self, batch: Pictures, batch_idx: int) -> Float[Tensor, ""]:
        """Return the contrastive loss within the batch."""
        loss: Tensor = self._compare(batch, return_loss=True).loss
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Pictures, batch_idx: int) -> None:
        """Log how often a picture's own caption fits best in its batch."""
        best = self._compare(batch).logits_per_image.argmax(1).cpu()
        own = [
            batch.captions[i] == caption for i, caption in zip(best, batch.captions, strict=True)
        ]
        accuracy = torch.tensor(own).float().mean()
        self.log("val/accuracy", accuracy, prog_bar=True, batch_size=len(own))

    def _compare(self, batch: Pictures, **options: bool) -> Any:
        tokens = self.tokenizer(list(batch.captions), padding=True, return_tensors="pt")
        pixels = standardized(batch.images / 2 + 0.5, MEAN, STD)
        return self.network(pixel_values=pixels, **tokens.to(self.device), **options)


class TokenizedClip(NamedTuple):
    """A network and its tokenizer, which belong in one folder."""

    network: CLIPModel
    tokenizer: CLIPTokenizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both."""
        self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class AutoencoderModule(OneCycle):
    """Trains the autoencoder between pictures and latents."""

    def __init__(self, learning_rate: float = 2e-3, divergence: float = 1e-5) -> None:
        """Make an untrained network.

        Args:
            learning_rate: AdamW's highest.
            divergence: weight of the latents' Kullback-Leibler divergence from noise.
        """
        super().__init__()
        self.vae = autoencoder()
        self.learning_rate = learning_rate
        self.divergence = divergence

    def training_step(self, batch: Pictures, batch_idx: int) -> Float[Tensor, ""]:
        """Return the error of the pictures, and the divergence of their latents."""
        latents = self.vae.encode(batch.images).latent_dist
        error = self._error(batch.images, latents.sample())
        self.log("train/error", error, prog_bar=True)
        return error + self.divergence * latents.kl().mean() / latents.mean[0].numel()

    def validation_step(self, batch: Pictures, batch_idx: int) -> None:
        """Log the error of pictures from their most likely latents."""
        error = self._error(batch.images, self.vae.encode(batch.images).latent_dist.mode())
        self.log("val/error", error, prog_bar=True, batch_size=len(batch.images))

    def _error(self, images: Tensor, latents: Tensor) -> Float[Tensor, ""]:
        decoded: Tensor = self.vae.decode(latents).sample
        return F.mse_loss(decoded, images)

    @torch.no_grad()
    def on_validation_epoch_end(self) -> None:
        """Note what brings latents to mean 0 and deviation 1, as diffusers' pipelines do it."""
        images = next(iter(self.trainer.datamodule.val_dataloader())).images  # type: ignore[attr-defined]
        latents = self.vae.encode(images.to(self.device)).latent_dist.mode()
        self.vae.register_to_config(
            shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item()
        )


class TextToImageModule(OneCycle):
    """Trains a `FluxPipeline`: its transformer and T5, by flow matching (Lipman et al. 2023)."""

    def __init__(
        self,
        vae: str,
        clip: str,
        start: str | None = None,
        learning_rate: float = 1.5e-3,
        caption_dropout: float = 0.1,
    ) -> None:
        """Put a pipeline together.

        Args:
            vae: folder of the autoencoder that `AutoencoderModule` trained.
            clip: folder of the CLIP that `ShapesClipModule` trained; the pipeline reads with
                its text tower.
            start: folder of a pipeline whose transformer and T5 are trained on; None begins
                from nothing.
            learning_rate: AdamW's highest.
            caption_dropout: share of the captions that are trained as empty, for guidance.
        """
        super().__init__()
        self.vae = AutoencoderKL.from_pretrained(locate(vae)).requires_grad_(False)
        self.text_encoder = CLIPTextModel.from_pretrained(locate(clip)).requires_grad_(False)
        self.transformer = flux_transformer()
        self.text_encoder_2 = t5_encoder()
        if start is not None:
            load_model(self.transformer, Path(locate(start), "transformer", DIFFUSERS_WEIGHTS))
            load_model(
                self.text_encoder_2, Path(locate(start), "text_encoder_2", TRANSFORMERS_WEIGHTS)
            )
        self.learning_rate = learning_rate
        self.caption_dropout = caption_dropout
        self.pipeline = FluxPipeline(
            flow_scheduler(),
            self.vae,
            self.text_encoder,
            CLIPTokenizer.from_pretrained(locate(clip)),
            self.text_encoder_2,
            t5_tokenizer(),
            self.transformer,
        )

    def training_step(self, batch: Latents, batch_idx: int) -> Float[Tensor, ""]:
        """Return the error of the flow's direction, mostly where captions decide it."""
        kept = torch.rand(len(batch.captions)) >= self.caption_dropout
        captions = [c if keep else "" for c, keep in zip(batch.captions, kept, strict=True)]
        time = shifted(torch.randn(len(captions), device=self.device).sigmoid())
        loss = self._loss(batch._replace(captions=captions), time, torch.randn)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Latents, batch_idx: int) -> None:
        """Log the error on pictures and captions that were not trained on."""
        generator = torch.Generator().manual_seed(batch_idx)
        time = torch.linspace(0.05, 0.95, len(batch.captions), device=self.device)
        loss = self._loss(batch, time, partial(torch.randn, generator=generator))
        self.log("val/loss", loss, prog_bar=True, batch_size=len(time))

    def _loss(
        self, batch: Latents, time: Float[Tensor, " b"], draw_noise: Callable[..., Tensor]
    ) -> Float[Tensor, ""]:
        clean: Tensor = self.pipeline._pack_latents(batch.latents, *batch.latents.shape)
        noise = draw_noise(clean.shape).to(clean)
        way = time.view(-1, 1, 1)
        heard, pooled, text_ids = self.pipeline.encode_prompt(
            list(batch.captions), None, self.device, max_sequence_length=TEXT_LENGTH
        )
        direction = self.transformer(
            hidden_states=(1 - way) * clean + way * noise,
            timestep=time,
            encoder_hidden_states=heard,
            pooled_projections=pooled,
            txt_ids=text_ids,
            img_ids=self._places(),
        ).sample
        return F.mse_loss(direction.float(), noise - clean)

    def _places(self) -> Float[Tensor, "tokens 3"]:
        side = IMAGE_SIZE // self.pipeline.vae_scale_factor // 2
        places: Tensor = self.pipeline._prepare_latent_image_ids(
            1, side, side, self.device, torch.float32
        )
        return places


def shifted(time: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Move times towards the noise, as the scheduler moves its steps (SD3, arXiv 2403.03206)."""
    return SHIFT * time / (1 + (SHIFT - 1) * time)
