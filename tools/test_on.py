"""Make an environment for a Python and run the tests in it.

    python tools/test_on.py python3.13
    python tools/test_on.py python3.13 --environment=../on-3.13 -- tests/test_kernels.py -x

The packages are the pinned ones of that Python: `constraints.txt` for 3.11, `constraints-3.13.txt` for 3.13, and the
newest that pip finds for any other. An environment that is there already is used as it is.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = {"3.11": "constraints.txt", "3.13": "constraints-3.13.txt"}


def version_of(python: str) -> str:
    """Ask an interpreter for its version, such as "3.13"."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.check_output([python, "-c", program], text=True).strip()


def install(python: str, environment: Path) -> None:
    """Make the environment and install the project there, with what its tests need."""
    subprocess.run([python, "-m", "venv", str(environment)], check=True)
    pins = PINS.get(version_of(python))
    line = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[dev]"]
    subprocess.run([*line, *([] if pins is None else ["--constraint", str(ROOT / pins)])], check=True)


def run(python: str, environment: Path, arguments: list[str]) -> int:
    """Run pytest in the environment; return its exit status."""
    if not (environment / "bin/python").exists():
        install(python, environment)
    return subprocess.run([str(environment / "bin/python"), "-m", "pytest", *arguments], cwd=ROOT).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="an interpreter, by name or path")
    parser.add_argument("--environment", type=Path, help="where to make it, or find it; without, it is thrown away")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    given = parser.parse_args()
    python = shutil.which(given.python)
    if python is None:
        parser.error(f"there is no {given.python} on PATH: name an interpreter, such as {Path(sys.executable).name}")
    if given.environment is not None:
        return run(python, given.environment.resolve(), given.pytest)
    with tempfile.TemporaryDirectory() as directory:
        return run(python, Path(directory) / "environment", given.pytest)


if __name__ == "__main__":
    sys.exit(main())
