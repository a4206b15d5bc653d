"""Builds the Hugging Face Space into build/space: front matter, requirements.txt, app.py and the package.

    make space
    hf upload YOU/lightglue build/space --repo-type space

The version of Gradio is that of constraints-transformers5.txt, and the requirements are those of pyproject.toml: this
writes them into the files here, which are the Space's but for the package.
"""

import re
import shutil
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

HERE = Path(__file__).parent
ROOT = HERE.parent
EXTRAS = ("app", "sift")
CPU = "--extra-index-url https://download.pytorch.org/whl/cpu"


def readme() -> str:
    """The Space's card, with the version of Gradio that is tested."""
    (version,) = re.findall(
        r"^gradio==(\S+)", (ROOT / "constraints-transformers5.txt").read_text(), flags=re.MULTILINE
    )
    return re.sub(r"(?m)^sdk_version: .*$", f"sdk_version: {version}", (HERE / "README.md").read_text())


def requirements() -> str:
    """What the package needs; Gradio comes with the Space."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    lines = dict.fromkeys(line for line in wanted if not line.startswith("gradio"))
    return "\n".join([CPU, *lines]) + "\n"


def build(out: Path) -> None:
    """Bring the files here up to date, and write the Space; what was there goes."""
    (HERE / "README.md").write_text(readme())
    (HERE / "requirements.txt").write_text(requirements())
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in ("README.md", "requirements.txt", "app.py"):
        shutil.copy(HERE / name, out / name)
    shutil.copytree(
        ROOT / "src" / "lightglue_hf", out / "lightglue_hf", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    shutil.copy(ROOT / "LICENSE", out / "LICENSE")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "space"
    build(target)
    print(f"wrote {target}: hf upload YOU/lightglue {target} --repo-type space")
