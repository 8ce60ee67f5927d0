"""Sphinx: `sphinx-build -W docs FOLDER` makes the pages and the reference from docstrings."""

import html
import subprocess
import sys
from pathlib import Path

import secateur

project, author = "Secateur", "the Secateur authors"
copyright = author
version = release = secateur.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"Secateur {version}"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["_build"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
suppress_warnings = ["myst.xref_missing", "ref.python"]  # links to files of the repository

_COMMANDS = Path(__file__).parent / "commands"


def _write_commands() -> None:
    """One page per command, from its help."""
    call = [
        sys.executable,
        "-m",
        "typer",
        "secateur.cli.app",
        "utils",
        "docs",
        "--name",
        "secateur",
    ]
    text = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    _COMMANDS.mkdir(exist_ok=True)
    for part in text.split("\n## `secateur ")[1:]:
        name, _, rest = part.partition("`")
        page, text = _COMMANDS / f"{name}.md", f"# secateur {name}{html.unescape(rest)}"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


_write_commands()
