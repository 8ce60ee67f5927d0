"""README.md does what it says: its Python runs, its tables are those of the measured results."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.data.images import FEW_IMAGES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def python_blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def check_tables(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/tables.py", "--check", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(page)
    assert blocks
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, Python block {number}", "exec"), namespace)
    assert (tmp_path / "pruned" / "report.json").is_file() == (page == "README.md")


def test_the_readme_shows_code_before_line_20() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines.index("```python") < 20


@pytest.mark.skipif(not list(RESULTS.glob("*.csv")), reason="no benchmark results yet")
def test_tables_are_those_of_the_results() -> None:
    done = check_tables()
    assert done.returncode == 0, done.stderr


def test_stale_tables_are_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_*"))
    shutil.copy(ROOT / "README.md", tmp_path)
    assert check_tables("--root", str(tmp_path)).returncode == 0
    stale = tmp_path / "docs" / "paper.md"
    text = stale.read_text(encoding="utf-8")
    stale.write_text(
        text.replace("<!-- paper:end -->", "old\n<!-- paper:end -->"), encoding="utf-8"
    )
    done = check_tables("--root", str(tmp_path))
    assert done.returncode == 1
    assert "docs/paper.md differs" in done.stderr


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{of.name}" for of in ROOT.glob("docs/*.md"))]
)
def test_commands_on_images_say_how_they_were_normalised(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith("$ secateur")]
    for command in commands:
        if "timm:" in command or "hf:" in command:  # such networks say it themselves
            continue
        if any(source in command for source in ("images/", "labelled/", "fractal:")):
            assert "--size" in command
            assert "--mean" in command
            assert "--std" in command


def test_the_number_of_images_that_is_too_few_is_told() -> None:
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    assert f"(fewer than {FEW_IMAGES};" in text


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda of: of.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`(?:\./)?((?:src|tests|docs|scripts|benchmarks|examples)/[\w./-]+)", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    assert [path for path in missing if "your_method" not in path] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda of: of.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        goal = page.parent / path if path else page
        assert goal.exists(), link
        assert not anchor or anchor in _anchors(goal), link
