"""Records from files and from the hub."""

import json
from pathlib import Path
from typing import Any

FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Of local files, and the names by which `datasets` reads them."""


def read_records(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: if it cannot be read, or holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON, or cut off: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, and holds a {type(content).__name__}")
    return content


def load_data_set(source: str, split: str, columns: dict[str, str | None]) -> Any:
    """Return a split of a data set: of a file, of a folder or of the hub.

    Args:
        source: a .json, .jsonl, .csv or .parquet file, a folder that `datasets` loads, or a hub id.
        split: of it.
        columns: which must be there, by the options that named them.

    Raises:
        ValueError: if it cannot be loaded, or lacks a column.
    """
    from datasets import load_dataset  # two seconds, for these sources alone
    from datasets.exceptions import DatasetsError

    kind = FORMATS.get(Path(source).suffix)
    try:
        data = (
            load_dataset(kind, data_files=source, split=split)
            if kind
            else load_dataset(source, split=split)
        )
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise ValueError(
            f"cannot load {source!r}, split {split!r}: {error}. Give a .json, .jsonl, .csv or "
            ".parquet file, a folder that `datasets` loads, or a hub id that this machine can reach"
        ) from error
    for option, column in columns.items():
        if column is not None and column not in data.column_names:
            raise ValueError(
                f"{source!r} has no column {column!r}; its columns are: "
                f"{', '.join(data.column_names)}. Say which by {option}="
            )
    return data
