"""The pages in a headless browser: their scripts run, and names that look like markup stay text."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from small_runs import M2D, make_clip, run

from m2d.cli import main as cli

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=document.title='run'>"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium")]


class Parsed(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.title = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, text):
        if self.tags and self.tags[-1][0] == "title" and not self.title:
            self.title = text


def shown_by_browser(path):
    words = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*words, Path(path).absolute().as_uri()], capture_output=True, text=True, timeout=180)
    return Parsed(done.stdout)


def test_the_report(small_workplace):
    rng = np.random.default_rng(0)
    folder = Path("data") / HOSTILE
    folder.mkdir(parents=True)
    for i in range(16):
        np.save(folder / f"{i}.npy", make_clip(rng, 40 + i))
    Path("data/l.csv").write_text("\n".join(["file_name", *(f"{HOSTILE}/{i}.npy" for i in range(16))]) + "\n")
    assert run(M2D, "--csv_main data/l.csv --output_dir run") == 0
    assert cli.main(["report", "run", "--device", "cpu"]) == 0
    page = shown_by_browser("run/report.html")
    ids = {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    assert ids == {"curves", "seen", "learned", "map", "near", "data", "settings"}
    assert page.title == "run: training report"
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) > 20 and all(image["src"].startswith("data:") and "alt" in image for image in images)
    assert marks_of(page, "Lengths of clips") >= 3


def marks_of(page, label):
    """How many texts the picture with this label has."""
    labels = [attributes.get("aria-label") or "" for _, attributes in page.tags]
    start = next(i for i, text in enumerate(labels) if text.startswith(label))
    behind = [tag for tag, _ in page.tags[start + 1 :]]
    return behind[: behind.index("section")].count("text")


def test_the_explore_page(tmp_path):
    names = np.array([f"{HOSTILE}/{i}.wav" for i in range(30)])
    np.savez(tmp_path / "e.npz", files=names, embeddings=np.random.default_rng(0).normal(size=(30, 8)))
    assert cli.main(["explore", str(tmp_path / "e.npz")]) == 0
    page = shown_by_browser(tmp_path / "e.html")
    assert page.title == "e.npz: embeddings" and not [tag for tag, _ in page.tags if tag == "img"]
    assert sum(tag == "canvas" for tag, _ in page.tags) == 1
    assert sum(attributes.get("class") == "linklike" for _, attributes in page.tags) >= 10
