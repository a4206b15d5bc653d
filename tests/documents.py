"""Pages in Markdown, for the tests that hold them true: their blocks of code, commands, links and headings."""

import re
import shlex
import unicodedata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)\)")


class Block(NamedTuple):
    """A block of code; the title says why it is not run as it stands."""

    language: str
    title: str
    code: str
    line: int


def blocks(path, language):
    """The blocks of a page in a language, in order."""
    text = path.read_text()
    found = []
    for match in FENCE.finditer(text):
        first, _, options = match[1].partition(" ")
        title = re.fullmatch(r'title="([^"]+)"', options)
        assert not options or title, f"{path.name}: {match[1]}"
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(first, title[1] if title else "", match[2], line))
    return [block for block in found if block.language == language]


def commands(path):
    """The command lines of a page's shell blocks, as lists of words; variables that are set there are replaced."""
    lines, variables = [], {}
    for block in blocks(path, "bash"):
        for line in block.code.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            words = shlex.split(line, comments=True)
            if words and (setting := re.fullmatch(r"([a-z]+)=(.*)", words[0])):
                variables[setting[1]] = setting[2]
            elif words:
                lines.append(words)
    return lines


def prose(path):
    """A page without its blocks of code."""
    return FENCE.sub("", path.read_text())


def inline_code(path):
    """The pieces of code within the text of a page, in one line each."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(path))]


def links(path):
    """The targets of a page's links and pictures."""
    return LINK.findall(re.sub(r"`[^`]*`", "", prose(path)))


def anchors(path):
    """What a link may name after "#": the headings of a page, as hosts of repositories write them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {slug(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings}


def slug(heading):
    text = unicodedata.normalize("NFC", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
