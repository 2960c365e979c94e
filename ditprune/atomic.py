"""Files and folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write; it becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)  # whoever writes opens it by its name
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o666 & ~current_umask())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it replaces `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield draft
        draft.chmod(0o777 & ~current_umask())
        shutil.rmtree(path, ignore_errors=True)
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def existing(path: Path) -> Path:
    """Return a path, or the folder in which it or a folder above it would be made."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def demand_writable(folder: Path) -> None:
    """Raise a ValueError now if nothing can be written to a folder later."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"cannot write to the folder {folder}: {error}. Choose another one, or make "
            "room and grant the right to write."
        ) from error


def current_umask() -> int:
    """Return the umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
