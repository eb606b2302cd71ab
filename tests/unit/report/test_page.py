"""A page is one file, loads nothing, and takes no text for markup."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from m2d.report.page import relative_address, write_page

SCRIPTS = ("base.js", "chart.js", "map.js", "report.js")
HOSTILE = "</script><img src=x onerror=alert(1)>'\"&\u2028<!--\udcff.wav"


class Parsed(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, text):
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += text

    def handle_endtag(self, tag):
        if tag == "script":
            self.tags.append("/script")


@pytest.fixture
def page(tmp_path):
    write_page(tmp_path / "p.html", HOSTILE[:-5], {"names": [HOSTILE, {HOSTILE: 1}]}, SCRIPTS, "m2d report")
    return (tmp_path / "p.html").read_text()


def test_names_are_no_markup(page):
    parsed = Parsed(page)
    assert sorted(set(parsed.tags)) == ["/script", "body", "head", "html", "main", "meta", "noscript", "script", "style", "title"]
    assert parsed.tags.count("script") == 2
    assert json.loads(parsed.scripts[0])["names"][0] == HOSTILE


def test_it_loads_nothing(page):
    parsed = Parsed(page)
    assert not [each for each in parsed.attributes if each[1] in ("src", "href", "srcset")]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page)


def test_no_other_script_may_run(page):
    parsed = Parsed(page)
    policy = next(value for _, name, value in parsed.attributes if name == "content" and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and policy.startswith("default-src 'none'")


def test_scripts_make_no_markup_of_texts():
    from importlib.resources import files

    for path in files("m2d.report").iterdir():
        if path.name.endswith(".js"):
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", path.read_text()), path


def test_addresses_of_files_are_quoted(tmp_path):
    assert relative_address(tmp_path / "a/javascript:x #1?.wav", tmp_path / "p.html") == "./a/javascript%3Ax%20%231%3F.wav"
    assert relative_address(tmp_path / "b.wav", tmp_path / "sub/p.html") == "./../b.wav"
