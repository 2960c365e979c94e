"""What to do where processes have waited too long for each other."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explaining_timeouts() -> Iterator[None]:
    """Raise a ValueError that tells the way out if a process gave up waiting for another.

    NCCL ends such a process itself, with a message of its own.
    """
    try:
        yield
    except RuntimeError as error:
        if "timed out" not in str(error).lower():
            raise
        raise ValueError(
            "the first process was still computing metrics when the others gave up waiting for "
            "it. Images and features are on disk: start again with a longer timeout, as in "
            "DDPStrategy(timeout=timedelta(hours=4)), or with one process; or measure the images' "
            "folder with `ditprune score`"
        ) from error
