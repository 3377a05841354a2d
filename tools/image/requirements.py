"""Print what to install for the frameworks and the extras of an image, one requirement a line."""

import os
import tomllib
from pathlib import Path

NAMES = {"torch": "torch", "tensorflow": "tensorflow-cpu"}


def requirements(frameworks: list[str], versions: dict[str, str], project: dict) -> list[str]:
    """Return the frameworks with their versions, and what the project needs besides."""
    if unknown := set(frameworks) - NAMES.keys():
        raise SystemExit(f"FRAMEWORKS: only {', '.join(NAMES)} are known, not {', '.join(unknown)}")
    chosen = [f"{NAMES[name]}=={versions[name.upper()]}" for name in frameworks]
    return [*chosen, *project["dependencies"], *project["optional-dependencies"]["lab"]]


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    print(*requirements(os.environ["FRAMEWORKS"].split(), dict(os.environ), project), sep="\n")
