"""Files that are there whole or not at all, whatever ends the process and whenever.

Content goes to a temporary name beside the final one, is brought to the disk, and is renamed; then the folder is
brought to the disk, so that the name survives a power cut as well.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from streamdet.errors import StreamdetError

NEW: Final = ".new"


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file or a folder under a temporary name, then give it its own; an old file goes with that."""
    new = path.with_name(path.name + NEW)
    write(new)
    sync(new)
    os.replace(new, path)  # noqa: PTH105 # Path.replace is the same; tests count these calls
    sync(path.parent, inside=False)


def replace_text(path: Path, text: str) -> None:
    """`replace`, for a line or a page."""
    replace(path, lambda new: new.write_text(text, "utf-8"))


def sync(path: Path, *, inside: bool = True) -> None:
    """Bring a file to the disk, or a folder with what is in it."""
    if inside and path.is_dir():
        for child in path.iterdir():
            sync(child)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Say in one line that nothing can be written, be the disk full or the folder not ours.

    Raises:
        StreamdetError: instead of an OSError or what safetensors makes of one.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise StreamdetError.of("out", str(path), f"a folder that can be written to, with room in it ({why})") from None
