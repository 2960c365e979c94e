"""Runs side by side: `python -m ditprune.compare runs/a runs/b`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from ditprune.report import headings, spread

Report = dict[str, Any]

TOLD = ("target_set", "target_sparsity", "model_sparsity", "num_samples", "seeds", "metrics")
"""What a table tells, or what it is made of."""

MUST_AGREE = (
    "target_set",
    "num_target_weights",
    "num_model_weights",
    "features",
    "protocols",
    "num_samples",
    "seeds",
    "conditions",
    "reference",
)
"""What a table of runs states once, because numbers that differ in it cannot be compared."""


def read_report(folder: Path) -> Report:
    """Read a run's report, or raise a ValueError that says what is missing."""
    try:
        report: Report = json.loads((folder / "report.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} is no finished run: {error}. Give run folders that hold a report.json."
        ) from error
    missing = [key for key in TOLD if not isinstance(report, dict) or key not in report]
    if missing:
        raise ValueError(f"the report.json in {folder} is none of a run: it lacks {missing}")
    return report


def distinct(folders: Sequence[Path]) -> dict[str, Path]:
    """Return folders by the ends of their paths, as short as tells them apart."""
    parts = [folder.absolute().parts for folder in folders]
    longest = max(map(len, parts), default=1)
    for length in range(1, longest):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, folders, strict=True))
    return {str(folder): folder for folder in folders}


def demand_comparable(reports: dict[str, Report]) -> None:
    """Raise a ValueError if the runs differ in what makes their numbers comparable."""
    for key in MUST_AGREE:
        values = {name: report.get(key) for name, report in reports.items()}
        if len({json.dumps(value) for value in values.values()}) > 1:
            raise ValueError(f"these runs cannot stand in one table, their {key} differs: {values}")
    for metric in next(iter(reports.values()))["metrics"]["dense"]:
        dense = {name: dense_cell(report, metric) for name, report in reports.items()}
        if len(set(dense.values())) > 1:
            raise ValueError(
                f"these runs cannot stand in one table, their dense models' {metric} differs: "
                f"{dense}. Do they draw with other settings, or other models?"
            )


def comparison(reports: dict[str, Report]) -> Table:
    """Return a table with a column for the dense model and each run, a line for each metric."""
    first = next(iter(reports.values()))
    names = Column(no_wrap=True)
    title = title_of(first)
    table = Table(names, "dense", *reports, title=title, title_justify="left", box=SIMPLE_HEAD)
    for key in ("target_sparsity", "model_sparsity"):
        cells = (f"{report[key]:.2%}" for report in reports.values())
        table.add_row(key.replace("_", " "), "0%", *cells, end_section=key == "model_sparsity")
    for name, heading in headings(first["metrics"]["pruned"]).items():
        cells = (cell(report["metrics"]["pruned"].get(name)) for report in reports.values())
        table.add_row(heading, dense_cell(first, name), *cells)
    return table


def title_of(report: Report) -> str:
    """Return what holds for all columns."""
    return (
        f"targets: {report['target_set']}\n{report['num_samples']} images for each of "
        f"{len(report['seeds'])} seeds; mean ± standard deviation over the seeds\n"
        f"features: {report['features']}"
    )


def dense_cell(report: Report, metric: str) -> str:
    """Return what the dense model's images are worth."""
    return cell(report["metrics"]["dense"].get(metric))


def cell(values: Sequence[float | str] | None) -> str:
    """Return mean and standard deviation over the seeds, whose number the title tells."""
    return spread([float(value) for value in values or ()])


def main(folders: Sequence[str]) -> None:
    """Print the table of some run folders."""
    try:
        names = distinct([Path(folder) for folder in folders])
        reports = {name: read_report(path) for name, path in names.items()}
        if not reports:
            raise ValueError("usage: python -m ditprune.compare RUN_FOLDER [RUN_FOLDER ...]")
        demand_comparable(reports)
    except ValueError as error:
        sys.exit(f"ditprune: {error}")
    Console().print(comparison(reports))


if __name__ == "__main__":
    main(sys.argv[1:])
