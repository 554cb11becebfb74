"""The files of a folder, without those that lie elsewhere: a link in a folder from the net could name any file of this machine."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(root: Path, follow: bool) -> tuple[list[Path], list[Path]]:
    """All files below `root` in order, and the links that lead out of it, or to a folder, which are not among them.

    follow: read those, too. A folder that is reached twice is read once.
    """
    inside, files, out, seen = root.resolve(), [], [], set()
    for folder, folders, names in os.walk(root, followlinks=follow):
        here = Path(folder)
        if follow:
            place = os.path.realpath(folder)
            if place in seen:
                folders.clear()
                continue
            seen.add(place)
        else:
            out += [here / name for name in folders if os.path.islink(here / name)]
        for name in names:
            path = here / name
            if not follow and path.is_symlink() and not path.resolve().is_relative_to(inside):
                out.append(path)
            elif path.is_file():
                files.append(path)
    return sorted(files), sorted(out)
