"""The script that builds the site of docs/: its links, its navigation, and what it finds wrong with built pages."""

import importlib.util

import pytest

from .documents import ROOT

pytest.importorskip("yaml")


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "site" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("link", "folder", "expected"),
    [
        ("checkpoints.md#by-name", "docs", "[x](checkpoints.md#by-name)"),
        ("docs/checkpoints.md", "", "[x](checkpoints.md)"),
        ("../README.md#figures", "docs", "[x](figures.md)"),
        ("../README.md#development", "docs", "[x](index.md)"),
        ("../CONTRIBUTING.md", "docs", "[x](contributing.md)"),
        ("../src/lightglue_hf/features.py", "docs", "x"),
        ("https://example.org/a.md", "docs", "[x](https://example.org/a.md)"),
        ("#here", "docs", "[x](#here)"),
    ],
)
def test_links(build, link, folder, expected):
    assert build.with_links(f"see [x]({link}).", ROOT / folder) == f"see {expected}."


def test_code_is_left_alone(build):
    text = "`[a](b.py)`\n\n```python\nx[i](b.py)\n```\n"
    assert build.with_links(text, ROOT) == text


def test_a_section_becomes_a_page(build):
    assert build.section("# A\n\n## Figures\n\nb\n\n### c\n\n## D\n", "figures") == "# Figures\n\nb\n\n### c\n\n"


def test_the_navigation_has_what_is_there(build, tmp_path):
    (tmp_path / "a.md").touch()
    nav = [{"A": "a.md"}, {"More": [{"B": "b.md"}, {"A": "a.md"}]}]
    assert build.present(nav, tmp_path) == [{"A": "a.md"}, {"More": [{"A": "a.md"}]}]


GOOD = '<h1 id="top">A</h1><a href="b.html#there">b</a><a href="https://example.org">c</a><a href="#top">d</a>'


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        (GOOD, None),
        ('<a href="c.html">c</a>', "a.html: there is no c.html"),
        ('<a href="b.html#nowhere">b</a>', "a.html: there is no b.html#nowhere"),
        ('<img src="no.png">', "a.html: there is no no.png"),
        ('<script src="https://example.org/x.js"></script>', "a.html loads https://example.org/x.js"),
        ('<link rel="stylesheet" href="https://example.org/x.css">', "a.html loads https://example.org/x.css"),
        ('<a href="http://docs">b</a>', "a.html: http://docs is no address"),
        ("see [<code>name</code>]", "a.html: a reference in brackets is no link"),
    ],
)
def test_what_is_wrong_with_a_page(build, tmp_path, html, problem):
    (tmp_path / "a.html").write_text(html)
    (tmp_path / "b.html").write_text('<p id="there">')
    assert build.check(tmp_path) == ([problem] if problem else [])
