"""What an earlier result has left in a folder that another one is written into."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from secateur.errors import SecateurWarning


def clear_away(files: Sequence[Path], *, listed: bool, earlier: str, written: str) -> None:
    """Removes a file that an earlier result left and that was not replaced, and tells of it.

    Args:
        files: that file, and those beside it that belong to it.
        listed: whether the earlier result tells of the file as it is; a file that it does not is
            somebody else's, and stays.
        earlier: what wrote the file, such as "an earlier sweep".
        written: what was written now, such as "the sweep".
    """
    if listed:
        remove_all(files)
        told = f"{files[0]} was removed: {earlier} wrote it"
    else:
        told = (
            f"{files[0]} was there before and is not of {written} that was written: remove it if "
            "you do not need it"
        )
    warnings.warn(told, SecateurWarning, stacklevel=4)


def remove_all(files: Sequence[Path]) -> None:
    """Removes the parts of a network's file, and the folder of an IR that is empty then."""
    for path in files:
        path.unlink(missing_ok=True)
    folder = files[0].parent
    if files[0].suffix == ".xml" and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
