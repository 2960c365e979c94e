"""Captioned pictures of shapes: to train on, to calibrate with, and to compare with."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import UInt8
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ditprune.datamodules.prompts import PromptDataModule
from ditprune.evaluation import to_uint8
from ditprune.sampling import sample_generator
from ditprune.zoo.pretrained import locate
from ditprune.zoo.shapes import Latents, Pictures, attributes, captions, draw, parse


class ShapesDataModule(PromptDataModule):
    """Drawn pictures and their captions: a tenth of the scenes is never trained on.

    Calibration takes captions that were trained on, evaluation those that were not.
    """

    def __init__(
        self,
        num_training_pictures: int = 100_000,
        num_evaluation_pictures: int = 500,
        num_calibration_samples: int = 128,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Choose sizes and the seed.

        Args:
            num_training_pictures: in an epoch; the next one has the same.
            num_evaluation_pictures: to validate with, and to compare with.
            num_calibration_samples: points of sampling trajectories to calibrate with.
            batch_size: of training, validation and reference pictures.
            num_workers: processes that draw pictures; it changes no result.
            seed: of all that captions leave open, and of all calibration samples.
        """
        trained, held_out = captions(held_out=False), captions(held_out=True)
        texts = [*trained[:num_calibration_samples], *held_out[:num_evaluation_pictures]]
        super().__init__(texts, num_calibration_samples=num_calibration_samples, seed=seed)
        self.prompts = texts  # not shuffled: trained ones are calibrated with, and come first
        self.num_training_pictures = num_training_pictures
        self.num_evaluation_pictures = num_evaluation_pictures
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        """Return pictures of captions that are trained on."""
        return self._loader(captions(held_out=False), self.num_training_pictures, self.seed)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return pictures of captions held out."""
        return self._loader(captions(held_out=True), self.num_evaluation_pictures, self.seed + 1)

    def reference_dataloader(self) -> Iterator[UInt8[Tensor, "n c h w"]]:
        """Return the pictures of captions held out, in 8 bits."""
        return (to_uint8(batch.images) for batch in self.val_dataloader())

    def _loader(self, texts: Sequence[str], count: int, seed: int) -> DataLoader[Pictures]:
        pictures = DrawnPictures(texts, count, seed)
        return DataLoader(
            pictures, self.batch_size, num_workers=self.num_workers, collate_fn=collate
        )


class ShapeLatentsDataModule(ShapesDataModule):
    """The same pictures as latents: drawn and encoded once, however often they are trained on."""

    def __init__(
        self,
        vae: str,
        num_training_pictures: int = 80_000,
        num_evaluation_pictures: int = 500,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        """Choose the autoencoder, sizes and the seed.

        Args:
            vae: folder of the autoencoder.
            num_training_pictures: in an epoch; the next one has the same, in another order.
            num_evaluation_pictures: to validate with.
            batch_size: of training and validation.
            seed: of all that captions leave open, and of the order.
        """
        super().__init__(
            num_training_pictures, num_evaluation_pictures, batch_size=batch_size, seed=seed
        )
        self.vae = vae
        self._encoded: dict[str, Latents] = {}

    def setup(self, stage: str) -> None:
        """Draw and encode all pictures."""
        vae = AutoencoderKL.from_pretrained(locate(self.vae)).eval()
        loaders = {"train": super().train_dataloader(), "val": super().val_dataloader()}
        for part, loader in loaders.items():
            self._encoded[part] = encode(vae, track(loader, f"encoding {part} pictures"))

    def train_dataloader(self) -> DataLoader[Any]:
        """Return latents of captions that are trained on."""
        return self._batches("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return latents of captions held out."""
        return self._batches("val", shuffle=False)

    def _batches(self, part: str, *, shuffle: bool) -> DataLoader[Latents]:
        whole = self._encoded[part]
        return DataLoader(
            range(len(whole.captions)),  # type: ignore[arg-type]
            self.batch_size,
            shuffle=shuffle,
            generator=torch.Generator().manual_seed(self.seed),
            collate_fn=lambda rows: Latents(whole.latents[rows], [whole.captions[i] for i in rows]),
        )


@torch.no_grad()
def encode(vae: AutoencoderKL, batches: Iterable[Pictures]) -> Latents:
    """Return the most likely latents of pictures, as a pipeline would hand them to its decoder."""
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    parts = [
        Latents((vae.encode(images).latent_dist.mode() - shift) * scale, texts)
        for images, texts, _ in batches
    ]
    captions = [text for part in parts for text in part.captions]
    return Latents(torch.cat([part.latents for part in parts]), captions)


class DrawnPictures(Dataset[Pictures]):
    """Pictures of captions that chance picks; each has a generator of its own."""

    def __init__(self, texts: Sequence[str], count: int, seed: int) -> None:
        """Take captions, the number of pictures and the seed of all chance."""
        self.texts = texts
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.count

    def __getitem__(self, index: int) -> Pictures:
        """Draw one picture, as a batch of one."""
        generator = sample_generator(self.seed, index)
        text = self.texts[int(torch.randint(len(self.texts), (1,), generator=generator))]
        image = draw(parse(text), generator)
        return Pictures(image[None], [text], torch.tensor([attributes(parse(text))]))


def collate(pictures: Sequence[Pictures]) -> Pictures:
    """Make one batch of several."""
    return Pictures(
        images=torch.cat([picture.images for picture in pictures]),
        captions=[text for picture in pictures for text in picture.captions],
        attributes=torch.cat([picture.attributes for picture in pictures]),
    )
