"""Prunes a FLUX-shaped model that is larger than the memory it may take, and says what it took.

python benchmarks/streamed.py --folder runs/streamed --double 1 --single 2

The weights are random bfloat16, written shard by shard. `--double 19 --single 38` is the shape of
FLUX.1-dev: 11.9 B parameters, 24 GB, twice of which the folder must have room for; it is not
removed. Run again, it goes on where it was interrupted.

Of the peak, only anonymous memory (RssAnon) is the program's own. Pages of mapped files (RssFile)
are counted in RSS and VmHWM too, but are copies of what is on disk: whoever needs room takes it.
"""

import argparse
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

import ditprune
from ditprune.families import Batch
from ditprune.granularity import Layer, Row
from ditprune.recipe import Recipe
from ditprune.saliency import Energy

CONFIG = {
    "in_channels": 64,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
"""Of FLUX.1-dev."""


def write_model(folder: Path, num_double: int, num_single: int) -> int:
    """Write random weights, one block in memory at a time; return how many there are."""
    config = {**CONFIG, "num_layers": num_double, "num_single_layers": num_single}
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        parts: dict[str, list[str]] = {}
        for name in shapes:
            parts.setdefault(".".join(name.split(".")[:2]) if "blocks." in name else "", []).append(
                name
            )
        places = {}
        for number, (part, names) in enumerate(parts.items(), 1):
            file = f"diffusion_pytorch_model-{number:05}-of-{len(parts):05}.safetensors"
            generator = torch.Generator().manual_seed(number)
            tensors = {name: random_weight(name, shapes[name], generator) for name in names}
            save_file(tensors, folder / file, {"format": "pt"})
            places |= dict.fromkeys(names, file)
            print(f"wrote {file} {part}", flush=True)
        index = {"metadata": {}, "weight_map": places}
        name = "diffusion_pytorch_model.safetensors.index.json"
        (folder / name).write_text(json.dumps(index))
        model.save_config(folder)  # last: it says that all is there
    return sum(math.prod(shape) for shape in shapes.values())


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Weights that keep activations finite through 57 blocks; norms are ones."""
    if len(shape) == 1:
        return torch.full(shape, float("norm" in name and name.endswith("weight"))).bfloat16()
    weight = torch.empty(shape, dtype=torch.bfloat16)
    for rows in weight.split(1024):  # random numbers of a block in float32 would take two
        rows.copy_(torch.randn(rows.shape, generator=generator) * (0.5 / shape[1] ** 0.5))
    return weight


def samples(count: int, num_image: int, num_text: int) -> list[Batch]:
    """Random latents and texts; no pipeline is needed to see how long it takes."""
    generator = torch.Generator().manual_seed(0)
    side = math.isqrt(num_image)
    places = torch.zeros(side * side, 3)
    places[:, 1] = torch.arange(side * side) // side
    places[:, 2] = torch.arange(side * side) % side
    level = torch.arange(count) / count

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator).bfloat16()

    condition = {
        "encoder_hidden_states": some(num_text, CONFIG["joint_attention_dim"]),
        "pooled_projections": some(CONFIG["pooled_projection_dim"]),
        "txt_ids": torch.zeros(count, num_text, 3),
        "img_ids": places.expand(count, -1, -1),
        "guidance": torch.full((count,), 3.5),
    }
    return [Batch(some(side * side, CONFIG["in_channels"]), level * 1000, condition, level)]


def memory(name: str) -> float:
    """Return an entry of /proc/self/status, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1e6 * 1.024


@contextmanager
def watching(seen: dict[str, float]) -> Iterator[None]:
    """Note the peaks of anonymous and of file pages, ten times a second."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            for name in ("RssAnon", "RssFile"):
                seen[name] = max(seen.get(name, 0.0), memory(name))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--double", type=int, default=1)
    parser.add_argument("--single", type=int, default=2)
    parser.add_argument("--num-samples", type=int, default=4)
    parser.add_argument("--image-tokens", type=int, default=64)
    parser.add_argument("--text-tokens", type=int, default=16)
    parser.add_argument("--granularity", choices=["layer", "row"], default="layer")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    count = write_model(options.folder / "dense", options.double, options.single)
    print(f"{count:,} parameters; RssAnon before pruning {memory('RssAnon'):.2f} GB", flush=True)
    recipe = Recipe(
        Energy(2.0, 1.0), {"layer": Layer(), "row": Row()}[options.granularity], sequential=True
    )
    batches = samples(options.num_samples, options.image_tokens, options.text_tokens)
    peaks: dict[str, float] = {}
    start = time.monotonic()
    with watching(peaks):
        outcome = ditprune.prune_folder(
            options.folder / "dense",
            options.folder / "pruned",
            batches,
            recipe=recipe,
            device=options.device,
        )
    seconds = time.monotonic() - start
    blocks = options.double + options.single
    sizes = [mask.numel() for mask in outcome.masks.masks.values()]
    print(
        f"{sum(sizes):,} weights of {len(sizes)} layers in {blocks} blocks, "
        f"{outcome.masks.sparsity():.4%} gone; {seconds:.0f} s, {seconds / blocks:.1f} s a block\n"
        f"peak anonymous memory {peaks['RssAnon']:.2f} GB, of {2 * count / 1e9:.2f} GB of weights "
        f"(ratio {peaks['RssAnon'] / (2 * count / 1e9):.3f}); mapped file pages at most "
        f"{peaks['RssFile']:.2f} GB, reclaimable; VmHWM {memory('VmHWM'):.2f} GB; "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        flush=True,
    )


if __name__ == "__main__":
    main()
