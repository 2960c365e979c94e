"""A model that the memory does not hold: its samples are made without it, and it is pruned on disk.

python examples/larger_than_memory.py runs/example

shapes-flux stands for it, which is small. Of FLUX.1-dev the samples take as much memory as the text
encoders and the decoder do, and the pruning as two of the transformer's 57 blocks.
"""

import sys
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from torch.utils.data import DataLoader

import ditprune
from ditprune.datamodules import CalibrationDataset, ShapesDataModule, collate
from ditprune.families import Flux
from ditprune.granularity import Layer
from ditprune.paging import empty_model
from ditprune.prompts import encode
from ditprune.recipe import Recipe
from ditprune.repair import LeastSquares
from ditprune.saliency import Energy
from ditprune.shards import Shards
from ditprune.zoo.pretrained import locate


@torch.no_grad()
def latents_of(pipeline: FluxPipeline, images: Tensor) -> Tensor:
    """Return images as the transformer sees them: encoded, scaled and in rows of patches."""
    vae = pipeline.vae
    encoded = vae.encode(images).latent_dist.mode()
    scaled = (encoded - vae.config.shift_factor) * vae.config.scaling_factor
    return pipeline._pack_latents(scaled, *scaled.shape)


def make_samples(source: Path, file: Path) -> None:
    """Noise captioned images of yours, and write them down beside their encoded captions."""
    transformer = empty_model(Shards.of(source / "transformer"))  # no memory for its weights
    options = {"transformer": transformer, "low_cpu_mem_usage": False}
    pipeline = FluxPipeline.from_pretrained(source, **options)
    pictures = next(iter(ShapesDataModule(batch_size=16).val_dataloader()))
    encoded = encode(
        pipeline,
        Flux(),
        pictures.captions,
        guided=False,
        num_inference_steps=16,
        height=64,
        width=64,
        max_sequence_length=16,
    )
    latents = latents_of(pipeline, pictures.images)
    samples = CalibrationDataset(latents, encoded.condition, encoded.scheduler, num_samples=32)
    ditprune.save_batches(file, DataLoader(samples, 16, collate_fn=collate))


def main(folder: str) -> FluxPipeline:
    """Prune 60 % block by block, and return a pipeline with what is left."""
    source, root = Path(locate("shapes-flux")), Path(folder)
    make_samples(source, root / "samples.safetensors")
    recipe = Recipe(Energy(1.0, 1.0), Layer(), 0.6, repair=LeastSquares(), sequential=True)
    batches = ditprune.load_batches(root / "samples.safetensors")
    ditprune.prune_folder(source / "transformer", root / "transformer", batches, recipe=recipe)
    options = {"low_cpu_mem_usage": False}
    pruned = FluxTransformer2DModel.from_pretrained(root / "transformer", **options)
    return FluxPipeline.from_pretrained(source, transformer=pruned, **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
