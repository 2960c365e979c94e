"""The table, the curves and the files of a study."""

import csv
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ditprune.atomic import writing
from ditprune.measurement import Measured
from ditprune.report import headings, spread
from ditprune.study import Result


@dataclass(frozen=True)
class StudyReport:
    """The results of a study, method by method."""

    results: Sequence[Result]
    dense: Measured
    num_samples: int
    """Images drawn for each seed of the sampling noise."""
    features: str
    protocols: Sequence[str] = ()
    """The definition of every metric of those features."""
    balances: Mapping[str, float] = field(default_factory=dict)
    """Methods that differ in n/m alone, and their n/m."""

    def settings(self) -> list[str]:
        """Return the sparsities and patterns, in the order in which they were run."""
        return list(dict.fromkeys(result.setting for result in self.results))

    def methods(self) -> list[str]:
        """Return the methods, in order."""
        return list(dict.fromkeys(result.method for result in self.results))

    def metrics(self) -> list[str]:
        """Return the metrics that the results have."""
        return list(dict.fromkeys(name for result in self.results for name in result.metrics))

    def values(self, method: str, setting: str, metric: str) -> list[float]:
        """Return a value for each calibration seed: the mean over the sampling seeds."""
        return [
            statistics.fmean(result.metrics[metric])
            for result in self.cell(method, setting)
            if metric in result.metrics
        ]

    def cell(self, method: str, setting: str) -> list[Result]:
        """Return the results of one method at one setting, a result for each seed."""
        return [r for r in self.results if (r.method, r.setting) == (method, setting)]

    def to_markdown(self) -> str:
        """Return the tables, one for each setting."""
        return "\n".join(["# Study\n", self.facts(), "", *map(self.section, self.settings())])

    def section(self, setting: str) -> str:
        """Return one setting's table, and whether predictions tell what happens to the images."""
        agreement = self.agreement(setting)
        told = agreement is not None and (
            "\nSpearman's rank correlation of prediction error and mse over the methods: "
            f"{agreement:.2f}\n"
        )
        return f"## {setting}\n\n{self.table(setting)}\n{told or ''}"

    def agreement(self, setting: str) -> float | None:
        """Return Spearman's rank correlation of prediction error and image error over methods."""
        methods = [m for m in self.methods() if self.values(m, setting, "mse")]
        if len(methods) < SMALLEST_SAMPLE:
            return None
        images = [statistics.fmean(self.values(m, setting, "mse")) for m in methods]
        predictions = [statistics.fmean(self.prediction_errors(m, setting)) for m in methods]
        return rank_correlation(predictions, images)

    def prediction_errors(self, method: str, setting: str) -> list[float]:
        """Return the error of single denoising steps for each calibration seed."""
        return [result.prediction_error for result in self.cell(method, setting)]

    def facts(self) -> str:
        """Return what holds for every table."""
        first = self.results[0]
        seeds = sorted({result.seed for result in self.results})
        num_sampling = len(next(iter(first.metrics.values()), []))
        return "\n".join(
            [
                f"- targets: {first.target_set}",
                f"- images: {self.num_samples} for each of {num_sampling} sampling seeds",
                f"- mean ± standard deviation over {len(seeds)} calibration seeds {seeds}; the "
                "dense model has none",
                f"- features: {self.features}; metrics of them: {', '.join(self.protocols)}",
                f"- all metrics: {', '.join(self.metrics())}",
                "- prediction error: |f_pruned - f|^2 / |f|^2 of single denoising steps, of "
                "samples that no method was given",
                "- speed: that of the dense model, for all: zeros are multiplied like other "
                "weights",
            ]
        )

    def table(self, setting: str) -> str:
        """Return one setting's table: a row for each method."""
        names = self.metrics()
        columns = [
            "method",
            "targets' sparsity",
            "model's sparsity",
            *headings(names).values(),
            "prediction error ↓",
            "pruning, s",
        ]
        means = [[statistics.fmean(self.dense[n])] if n in self.dense else [] for n in names]
        dense = ["dense", "0%", "0%", *map(spread, means), "0", ""]
        rows = [dense, *(self.row(method, setting, names) for method in self.methods())]
        lines = [columns, ["---"] * len(columns), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def row(self, method: str, setting: str, names: Sequence[str]) -> list[str]:
        """Return one method's row."""
        cell = self.cell(method, setting)
        return [
            method,
            f"{statistics.fmean(r.target_sparsity for r in cell):.2%}",
            f"{statistics.fmean(r.model_sparsity for r in cell):.2%}",
            *(spread(self.values(method, setting, name)) for name in names),
            spread(self.prediction_errors(method, setting)),
            f"{statistics.fmean(r.pruning_seconds for r in cell):.1f}",
        ]

    def to_csv(self) -> str:
        """Return every result as a line: a value of each metric for each pair of seeds."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        names = self.metrics()
        writer.writerow([*COLUMNS, "sampling_seed_index", *names])
        writer.writerows(self._lines(names))
        return file.getvalue()

    def _lines(self, names: Sequence[str]) -> Iterator[list[object]]:
        for result in self.results:
            columns = [getattr(result, name) for name in COLUMNS]
            for index, values in enumerate(zip(*(result.metrics[n] for n in names), strict=True)):
                yield [*columns, index, *values]

    def save(self, folder: Path) -> None:
        """Write `study.md` and `study.csv`."""
        texts = {"study.md": self.to_markdown(), "study.csv": self.to_csv()}
        for name, text in texts.items():
            with writing(folder / name) as draft:
                draft.write_text(text)


COLUMNS = (
    "method",
    "setting",
    "seed",
    "target_sparsity",
    "model_sparsity",
    "pruning_seconds",
    "prediction_error",
    "mask_hash",
)

SMALLEST_SAMPLE = 4
"""Methods below which a rank correlation says nothing."""


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; equal values get different ranks."""
    ranks = np.array([np.argsort(np.argsort(values)) for values in (x, y)])
    return float(np.corrcoef(ranks)[0, 1])
