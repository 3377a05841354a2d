"""How Sphinx makes a site of these pages: `make docs`. They read as well without it."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

project = "horovod_detox"
author = "the authors of horovod_detox"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser"]
myst_heading_anchors = 4
exclude_patterns: list[str] = []
smartquotes = False  # -- is no dash here
highlight_language = "text"
pygments_style = "default"
pygments_dark_style = "github-dark"

html_theme = "furo"
html_title = "horovod_detox"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0969da", "color-brand-content": "#0969da"},
    "dark_css_variables": {"color-brand-primary": "#4493f8", "color-brand-content": "#4493f8"},
}

HERE = {"CONTRIBUTING": "contributing", "CHANGELOG": "changelog", "README": "index"}
"""Pages of the site for files beside docs/, to which the sources link."""


def link_to_pages(app: Any, page: str, source: list[str]) -> None:
    """Lead links to those files to their pages."""
    for file, name in HERE.items():
        source[0] = source[0].replace(f"](../{file}.md", f"]({name}.md")


def setup(app: Any) -> None:
    app.connect("source-read", link_to_pages)
