"""The code in the pages that promise to run does run, top to bottom, in a process as fresh as a reader's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

PAGES = (
    "README.md",
    "docs/import_the_backbone.md",
    "docs/language.md",
    "docs/your_own_data.md",
    "docs/data.md",
    "docs/evaluations.md",
)


def code_of(page: str) -> str:
    """The python blocks of a page as one program whose lines have the numbers that they have in the page."""
    lines, inside = [], False
    for line in page.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines)


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_runs(name: str, tmp_path: Path) -> None:
    code = code_of((tiny.ROOT / name).read_text(encoding="utf-8"))
    assert "import" in code
    program = tmp_path / f"{Path(name).stem}.py"
    program.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tiny.ROOT,
        env=tiny.environment(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_blocks_of_other_languages_are_left_out() -> None:
    page = "text\n```python\nx = 1\n```\n```\nrm -rf\n```\n```python\nassert x == 2\n```\n"
    assert code_of(page).splitlines() == ["", "", "x = 1", "", "", "", "", "", "assert x == 2"]
    with pytest.raises(AssertionError):
        exec(code_of(page), {})


PAGES_OF_DOCS = sorted(p.relative_to(tiny.ROOT / "docs").as_posix() for p in (tiny.ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES_OF_DOCS)
def test_every_page_is_found(page: str) -> None:
    """In the navigation, and from the first page of its folder."""
    assert f": {page}\n" in (tiny.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    if not page.endswith("index.md"):
        first = tiny.ROOT / "docs" / Path(page).parent / "index.md"
        assert f"({Path(page).name})" in first.read_text(encoding="utf-8"), f"{first} does not name {page}"
