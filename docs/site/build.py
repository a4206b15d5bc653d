"""Build the site of docs/ into build/site, with warnings as errors: `make docs`.

The pages stay readable in the repository, where their links lead to other pages and to files. Some of those files
become pages, too (`PAGES`, and a section of README.md); a link to any other becomes plain text, since the site may be
read far from the repository. Afterwards everything that the built pages refer to has to be there, on this side of the
network.
"""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "src/lightglue_hf/checkpoints/tiny/README.md": "tiny.md",
}
SECTIONS = {"README.md#figures": "figures.md"}
FENCE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]+)\)")


def main() -> None:
    docs = prepare(ROOT / "docs", BUILD / "docs")
    config = yaml.safe_load((ROOT / "docs/site/mkdocs.yml").read_text())
    config["nav"] = present(config["nav"], docs)
    (BUILD / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", "mkdocs.yml"]
    built = subprocess.run(command, cwd=BUILD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if built.returncode or "griffe: " in built.stdout:  # which warns of docstrings, and ends well
        sys.exit(built.stdout)
    (BUILD / "site" / "404.html").unlink()  # its links start at the root of a host, which there is not
    if problems := check(BUILD / "site"):
        sys.exit("\n".join(problems))
    print("wrote build/site/index.html")


def prepare(source: Path, docs: Path) -> Path:
    """The pages of the site, with links among themselves, and their pictures."""
    shutil.rmtree(docs, ignore_errors=True)
    docs.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".md":
            (docs / path.name).write_text(with_links(path.read_text(), path.parent))
        elif path.is_file():
            shutil.copy(path, docs)
    shutil.copy(source / "site" / "site.css", docs)
    for name, page in PAGES.items():
        text = re.sub(r"\A---\n.*?^---\n", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
        (docs / page).write_text(with_links(text, (ROOT / name).parent))
    for name, page in SECTIONS.items():
        name, _, anchor = name.partition("#")
        (docs / page).write_text(with_links(section((ROOT / name).read_text(), anchor), (ROOT / name).parent))
    return docs


def section(text: str, anchor: str) -> str:
    """A section of a page as a page of its own."""
    (found,) = re.findall(rf"^## ({anchor}\n.*?)(?=^## )", text, flags=re.MULTILINE | re.DOTALL | re.IGNORECASE)
    return f"# {found}"


def with_links(text: str, folder: Path) -> str:
    """A page's text with its links, which start in a folder of the repository, among the pages of the site."""

    def relinked(match: re.Match[str]) -> str:
        label, link = match.groups()
        target = page_of(link, folder)
        return f"[{label}]({target})" if target else label

    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(relinked, part) for part in parts[::2]]
    return "".join(parts)


def page_of(link: str, folder: Path) -> str | None:
    """Where a link leads in the site; `None` if it leads out of it into the repository."""
    parts = urlsplit(link)
    if parts.scheme or not parts.path:
        return link
    path = (folder / parts.path).resolve().relative_to(ROOT).as_posix()
    anchor = f"#{parts.fragment}" if parts.fragment else ""
    if path + anchor in SECTIONS:
        return SECTIONS[path + anchor]
    if path == "README.md":
        return "index.md"
    if path in PAGES:
        return PAGES[path] + anchor
    return path.removeprefix("docs/") + anchor if path.startswith("docs/") else None


def present(nav: list, docs: Path) -> list:
    """The entries of a navigation that are there."""
    kept = []
    for entry in nav:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            kept.append({title: present(target, docs)})
        elif (docs / target).exists():
            kept.append(entry)
    return kept


class References(HTMLParser):
    """What a page has (`anchors`), what it leads to (`links`), and what a browser loads with it (`loaded`)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if "href" in values:
            (self.links if tag == "a" else self.loaded).add(values["href"])
        if "src" in values:
            self.loaded.add(values["src"])


def check(site: Path) -> list[str]:
    """What is wrong with the built pages: references to nothing, to other hosts, or not resolved."""
    pages = {path: References(path) for path in sorted(site.rglob("*.html"))}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(site)
        if re.search(r"\[<code>\w", page.text):
            problems.append(f"{name}: a reference in brackets is no link")
        for reference in sorted(page.links | page.loaded):
            parts = urlsplit(reference)
            if parts.scheme in ("http", "https"):
                if reference in page.loaded:
                    problems.append(f"{name} loads {reference}")
                elif "." not in parts.netloc:
                    problems.append(f"{name}: {reference} is no address")
            elif parts.scheme not in ("data", "mailto", "javascript"):
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                if not target.exists():
                    problems.append(f"{name}: there is no {reference}")
                elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                    problems.append(f"{name}: there is no {reference}")
    return problems


if __name__ == "__main__":
    main()
