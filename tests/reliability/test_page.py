"""docs/reliability.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_test_that_the_page_names_is_there() -> None:
    page = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:tests/)?(test_\w+\.py)(?:::(test_\w+))?`", page)
    assert len(named) > 60
    for file, function in named:
        path = next((folder / file for folder in (TESTS / "reliability", TESTS) if (folder / file).is_file()), None)
        assert path is not None, file
        assert not function or f"def {function}(" in path.read_text(encoding="utf-8"), f"{file}::{function}"
