"""The files of a folder, without those that lie elsewhere: a link in a folder from the net could name any file of this machine."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(root: Path, follow: bool) -> tuple[list[Path], list[Path]]:
    """All files below `root` in order, and the links that lead out of it, or to a folder, which are not among them.

    follow: read those, too. A folder that is reached twice is read once.
    """
    inside, files, out, seen = root.resolve(), [], [], set()

    def look(folder: str) -> None:
        if follow:
            if (place := os.path.realpath(folder)) in seen:
                return
            seen.add(place)
        try:
            entries = [*os.scandir(folder)]
        except OSError:  # one that may not be read
            return
        folders = []
        for entry in entries:
            path, link = entry.path, entry.is_symlink()
            # A listing knows the kinds of all that are no links: no file is asked for itself.
            if os.path.isdir(path) if link else entry.is_dir():
                (folders if follow or not link else out).append(path)
            elif link and not follow and not Path(path).resolve().is_relative_to(inside):
                out.append(path)
            elif os.path.isfile(path) if link else entry.is_file():
                files.append(path)
        for inner in folders:
            look(inner)

    look(str(root))
    return _in_order(files), _in_order(out)


def _in_order(paths: list[str]) -> list[Path]:
    return [Path(path) for path in sorted(paths, key=lambda path: path.split(os.sep))]
