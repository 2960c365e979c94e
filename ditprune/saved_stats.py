"""Statistics on disk: calibrate once, prune many times."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ditprune.activations import ActivationStats, Stats
from ditprune.atomic import writing
from ditprune.calibration import Observation, Weights
from ditprune.decision import Evidence
from ditprune.importance import Importance, ImportanceMeasure
from ditprune.targets import PruneTarget

STATISTICS, IMPORTANCE = "statistics.safetensors", "importance.safetensors"
FORMAT = "ditprune-statistics-1"
NUM_SAMPLED = 4096
"""Weights of each layer that identify it."""


def save_stats(path: Path, stats: Stats, weights: Weights, observation: Observation) -> None:
    """Write statistics, with what they are statistics of; shared ones once."""
    numbers = {id(statistic): str(i) for i, statistic in enumerate(dict.fromkeys(stats.values()))}
    tensors = {numbers[id(s)]: s.pack().cpu() for s in dict.fromkeys(stats.values())}
    entries = [
        {
            "name": target.name,
            "stats": numbers[id(statistic)],
            "num_inputs": statistic.sum.shape[1],
            "weights": fingerprint(weights[target]),
        }
        for target, statistic in stats.items()
    ]
    header = {"format": FORMAT, "targets": json.dumps(entries), "observation": repr(observation)}
    with writing(path) as draft:
        save_file(tensors, draft, header)


def load_stats(path: Path, weights: Weights, observation: Observation) -> Stats:
    """Read what `save_stats` wrote of the same model, targets and observation.

    Raises:
        ValueError: if the file cannot be read, or tells of another model, of other targets or of
            another observation.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            entries = {entry["name"]: entry for entry in json.loads(header["targets"])}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"cannot read statistics from {path}: {error}. It must be a statistics.safetensors "
            "that a calibration wrote, whole; copy it again or calibrate again."
        ) from error
    demand_same(path, header, entries, weights, observation)
    unpacked: dict[str, ActivationStats] = {}
    for target, weight in weights.items():
        number = entries[target.name]["stats"]
        if number not in unpacked:
            unpacked[number] = unpack(tensors[number], weight, observation)
    return {target: unpacked[entries[target.name]["stats"]] for target in weights}


def save_importance(
    path: Path, importance: Mapping[PruneTarget, Importance], measure: ImportanceMeasure | None
) -> None:
    """Write what was measured along trajectories, and how; nothing, if nothing was."""
    tensors = {target.name: matrix for target, matrix in importance.items()}
    with writing(path) as draft:
        save_file(tensors, draft, {"measure": repr(measure)})


def load_importance(
    path: Path, weights: Weights, measure: ImportanceMeasure | None
) -> dict[PruneTarget, Importance]:
    """Read what `save_importance` wrote of the same measure; nothing, if none is asked for.

    Raises:
        ValueError: if the file cannot be read, or tells of other layers or of another measure.
    """
    if measure is None:
        return {}
    try:
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {})["measure"]
            if told == repr(measure):
                return {target: file.get_tensor(target.name) for target in weights}
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(
            f"cannot read importance from {path}: {error}. It must be an importance.safetensors "
            "that a calibration wrote, whole; copy it again or calibrate again."
        ) from error
    raise ValueError(
        f"{path} tells of importance={told}, and importance={measure} is asked for. Calibrate "
        "again, without the file, or ask for what it tells of."
    )


def save_evidence(
    folder: Path,
    evidence: Evidence,
    weights: Weights,
    observation: Observation,
    measure: ImportanceMeasure | None,
) -> None:
    """Write what a calibration told into its folder."""
    save_importance(folder / IMPORTANCE, evidence.importance, measure)
    # Last, because it says of which model both are.
    save_stats(folder / STATISTICS, evidence.stats, weights, observation)


def load_evidence(
    folder: Path, weights: Weights, observation: Observation, measure: ImportanceMeasure | None
) -> Evidence:
    """Read what `save_evidence` wrote of the same model, targets, observation and measure.

    Raises:
        ValueError: if a file cannot be read, or tells of something else.
    """
    stats = load_stats(folder / STATISTICS, weights, observation)
    return Evidence(stats, load_importance(folder / IMPORTANCE, weights, measure))


def demand_same(
    path: Path,
    header: Mapping[str, str],
    entries: Mapping[str, Mapping[str, object]],
    weights: Weights,
    observation: Observation,
) -> None:
    """Raise a ValueError if a file's statistics are not of these weights, seen in this way."""
    again = "Calibrate again, without the file."
    if set(entries) != {target.name for target in weights}:
        missing = [target.name for target in weights if target.name not in entries]
        raise ValueError(
            f"{path} holds statistics of another target set: {len(entries)} layers, where "
            f"{len(weights)} are to be pruned; it lacks {missing[:4] or 'none'}. {again}"
        )
    changed = [t.name for t, w in weights.items() if entries[t.name]["weights"] != fingerprint(w)]
    if changed:
        raise ValueError(
            f"{path} holds statistics of another model: the weights of {len(changed)} layers "
            f"differ, {changed[0]} for one. {again}"
        )
    if header["observation"] != repr(observation):
        raise ValueError(
            f"{path} tells of {header['observation']}, and {observation} is asked for. {again}"
        )


def fingerprint(weight: Tensor) -> str:
    """Return a digest of a layer's shape and of some of its weights, evenly taken."""
    flat = weight.flatten()
    step = max(1, flat.numel() // NUM_SAMPLED)
    digest = hashlib.sha256(f"{tuple(weight.shape)}".encode())
    digest.update(flat[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def unpack(packed: Tensor, weight: Tensor, observation: Observation) -> ActivationStats:
    """Return the statistics of a layer's inputs, on the layer's device."""
    stats = ActivationStats(
        weight.shape[1], observation.num_timestep_bins, weight.device, observation.with_gram
    )
    stats.unpack_(packed.to(weight.device, torch.float64))
    return stats
