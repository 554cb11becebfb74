"""The server's page in a browser: a picture is uploaded and answered, searched with, and refused where it is broken."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import used

import unimodal

DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(DRIVER is None, reason="chromedriver is not installed (Debian: chromium-driver)")
pytest.importorskip("selenium", reason="selenium is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --disable-dev-shm-usage"
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return used.pictures(tmp_path_factory.mktemp("pictures"), 4)


@pytest.fixture(scope="module")
def address(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of an untrained CLIP, ViT and MAE, with an index of four pictures."""
    import uvicorn

    from unimodal.use.index import append
    from unimodal.use.serve.app import Server, make_app
    from unimodal.use.serve.batching import Batcher

    folder = tmp_path_factory.mktemp("run")
    config = tiny.plain("clip", "vit", "mae")
    config["tokenizers"] = {name: config["tokenizers"][name] for name in ("text", "image")}
    used.workdir(folder, config)
    loaded = unimodal.load(folder)
    files = [pictures / f"{i}.png" for i in range(4)]
    rows = [{"id": str(file), "embedding": loaded.embed(file, task="clip")[0]} for file in files]
    index = append(tmp_path_factory.mktemp("index"), rows, {"model": str(folder), "task": "clip"})
    server = Server(loaded, Batcher(loaded, batch_size=8), index)
    app = make_app(server, most=1_000_000, token=None, hosts=["localhost"])
    running = uvicorn.Server(uvicorn.Config(app, host="localhost", port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://localhost:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


class Page:
    """The page as its user sees it."""

    def __init__(self, browser: Any, address: str):
        self.browser = browser
        browser.get(address)
        self.until(lambda: len(self.all("#task option")) > 1, "no questions are offered")

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def until(self, true: Any, otherwise: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"{otherwise}: {self.one('#answer').text!r}"
            time.sleep(0.05)

    def ask(self, question: str, *, file: Path | None = None, text: str = "") -> str:
        """Choose a question by the beginning of its name, give what it asks for, and wait for the answer."""
        next(option for option in self.all("#task option") if option.text.startswith(question)).click()
        if file is not None:
            self.one("#file").send_keys(str(file))
        if text:
            self.one("#text").clear()
            self.one("#text").send_keys(text)
        self.one("#send").click()
        self.until(lambda: self.one("#answer").text not in ("…", "") and self.one("#send").is_enabled(), "no answer")
        return self.one("#answer").text


@pytest.mark.parametrize("width", WIDTHS)
def test_upload_answer_search_and_error(width: int, browser: Any, address: str, pictures: Path, tmp_path: Path) -> None:
    browser.set_window_size(width, 1400)
    page = Page(browser, address)
    answer = page.ask("vit: class", file=pictures / "1.png")
    assert "%" in answer and len(page.all("#answer meter")) == 5 and page.all("#preview img")
    assert page.ask("mae: picture", file=pictures / "1.png") == "Save the picture"
    page.until(
        lambda: page.one("#answer img").get_property("naturalWidth") == 16, "the picture that was made does not show"
    )
    answer = page.ask("search", file=pictures / "2.png")
    assert answer.splitlines()[0].startswith("2.png · 1.000"), answer
    shown = lambda: all(i.get_property("naturalWidth") == 20 for i in page.all("#answer img"))  # noqa: E731
    page.until(shown, "the pictures that were found do not show")
    assert len(page.all("#answer img")) == 4
    both = page.ask("search", file=pictures / "2.png", text="but blue")
    assert both.count("·") == 4 and not both.splitlines()[0].endswith("1.000")
    browser.save_screenshot(str(tmp_path / "page.png"))
    # Nothing lies outside the window, whatever its width.
    inner, whole = (browser.execute_script(f"return {what}") for what in ("innerWidth", "document.body.scrollWidth"))
    assert whole <= inner
    error = page.ask("vit: class", file=pictures / "broken.png")
    assert "not an image" in error and page.all("#answer .error")
    assert "%" in page.ask("vit: class", file=pictures / "3.png")  # and it goes on
    complaints = [line["message"] for line in browser.get_log("browser") if "400 (Bad Request)" not in line["message"]]
    assert complaints == []


def test_without_a_file_it_says_what_is_missing(browser: Any, address: str) -> None:
    page = Page(browser, address)
    assert page.ask("vit: class") == "choose a file first"
    # Everything can be reached by the keyboard, and has a name.
    for field in page.all("input, select, textarea, button"):
        if field.is_displayed():
            assert field.accessible_name
