"""How far the drawing is, over all processes."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ditprune.distributed import rank, share_of_rank
from ditprune.sampling_plan import Chunk


class Speed(ProgressColumn):
    """Images a second, of all processes together."""

    def render(self, task: Task) -> Text:
        """Return it, once it is known."""
        return Text(f"{task.speed:.3g} images/s" if task.speed else "")


def chunks_of_rank(chunks: Sequence[Chunk], home: Path, title: str) -> Iterator[Chunk]:
    """Yield the chunks of this process; the first one shows how far all of them are.

    It is told by the files, for no process knows what the others do.
    """
    pending = deque(chunks)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed())
    with Progress(*columns, TimeRemainingColumn(), disable=rank() > 0) as progress:
        num_images = sum(len(chunk.ids) for chunk in chunks)
        task = progress.add_task(title, total=num_images, completed=drop_finished(pending, home))
        for chunk in share_of_rank(chunks):
            yield chunk
            progress.advance(task, drop_finished(pending, home))


def drop_finished(pending: deque[Chunk], home: Path) -> int:
    """Drop the chunks that have a file, up to the first that has none; return their images."""
    num_images = 0
    while pending and pending[0].file(home).exists():
        num_images += len(pending.popleft().ids)
    return num_images
