"""Runs side by side: `python -m ditprune.compare runs/a runs/b`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ditprune.report import DIRECTION, HIGHER_IS_BETTER, spread

Report = dict[str, Any]

MUST_AGREE = ("target_set", "num_target_weights", "num_model_weights", "num_samples", "seeds")
"""What a table of runs states once, because numbers that differ in it cannot be compared."""


def read_report(folder: Path) -> Report:
    """Read a run's report, or raise a ValueError that says what is missing."""
    try:
        report: Report = json.loads((folder / "report.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} is no finished run: {error}. Give run folders that hold a report.json."
        ) from error
    return report


def demand_comparable(reports: dict[str, Report]) -> None:
    """Raise a ValueError if the runs differ in what makes their numbers comparable."""
    for key in MUST_AGREE:
        values = {name: report[key] for name, report in reports.items()}
        if len({json.dumps(value) for value in values.values()}) > 1:
            raise ValueError(f"these runs cannot stand in one table, their {key} differs: {values}")


def comparison(reports: dict[str, Report]) -> Table:
    """Return a table with the dense model first and a row for each run."""
    first = next(iter(reports.values()))
    names = list(next(iter(reports.values()))["metrics"]["pruned"])
    headers = [f"{name} {DIRECTION.get(name, HIGHER_IS_BETTER)}" for name in names]
    table = Table("run", "sparsity of targets", "of model", *headers, title=title_of(first))
    table.add_row("dense", "0%", "0%", *row_of(first["metrics"]["dense"], names))
    for name, report in reports.items():
        sparsities = (f"{report[key]:.2%}" for key in ("target_sparsity", "model_sparsity"))
        table.add_row(name, *sparsities, *row_of(report["metrics"]["pruned"], names))
    return table


def title_of(report: Report) -> str:
    """Return what holds for all rows."""
    return (
        f"targets: {report['target_set']}; {report['num_samples']} images for each of "
        f"{len(report['seeds'])} seeds; mean ± standard deviation over the seeds"
    )


def row_of(measured: dict[str, list[float | str]], names: Sequence[str]) -> list[str]:
    """Return the cells of one row."""
    return [spread([float(value) for value in measured.get(name, [])]) for name in names]


def main(folders: Sequence[str]) -> None:
    """Print the table of some run folders."""
    try:
        reports = {Path(folder).name: read_report(Path(folder)) for folder in folders}
        if not reports:
            raise ValueError("usage: python -m ditprune.compare RUN_FOLDER [RUN_FOLDER ...]")
        demand_comparable(reports)
    except ValueError as error:
        sys.exit(f"ditprune: {error}")
    Console().print(comparison(reports))


if __name__ == "__main__":
    main(sys.argv[1:])
