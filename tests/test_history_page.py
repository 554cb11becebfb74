"""The story of docs/history.md: its commands run in their order, and come to what the page says of them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import tiny

from unimodal.data.sources import open_source

PAGE = tiny.ROOT / "docs" / "history.md"


def commands() -> list[list[str]]:
    lines = re.findall(r"^\$ unimodal (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def prepare(folder: Path) -> None:
    """The recipe of the page, and a few pages of the embedded book."""
    recipe = re.search(r"```python\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert recipe is not None
    (folder / "story.py").write_text(recipe[1])
    for split, characters in (("train", 60_000), ("validation", 12_000)):
        (folder / "pages" / split).mkdir(parents=True)
        text = open_source("embedded:book", split)[0]["text"][:characters]
        (folder / "pages" / split / "book.txt").write_text(text, encoding="utf-8")


def test_the_story_runs(tmp_path: Path) -> None:
    prepare(tmp_path)
    said = {}
    (tmp_path / "scratch").mkdir()
    lines = commands()
    for line, (code, out, err) in zip(lines, tiny.launches(lines, tmp_path / "scratch", 1, tmp_path), strict=True):
        assert code == 0, (line, err)
        said[" ".join(line[:2]) if line[0] == "ledger" else line[2]] = out
    row = r"{} .+ (gained|lost|unclear|same) \("
    assert re.search(row.format("gpt"), said["ledger diff"])[1] == "lost"
    assert "entries that both changed have opposite signs" in said["ledger merge"]
    assert "broke gpt: hasty after step 20" in said["ledger bisect"]
    assert re.search(row.format("gpt"), said["ledger revert"])[1] == "gained"
    assert "all as it was written" in said["ledger verify"]  # and files of tried merges, which gc removes
    assert "hasty after step 20" in (tmp_path / "history.html").read_text(encoding="utf-8")
