"""docs/networks.md: each example runs, where its package is there."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "networks.md"
BLOCK = re.compile(
    r"(?:<!-- needs: ([\w, ]+) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def examples() -> list[tuple[list[str], str]]:
    """Packages and code of each example, with the blocks that continue it."""
    found: list[tuple[list[str], str]] = []
    for needs, code in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        needed = needs.split(", ") if needs else []
        if "continues" in needed:
            found[-1] = (found[-1][0], found[-1][1] + code)
        else:
            found.append((needed, code))
    return found


@pytest.mark.parametrize("number", range(len(examples())))
@pytest.mark.filterwarnings("ignore")  # those of other packages, and of random networks
def test_an_example_runs(number: int, tmp_path, monkeypatch) -> None:
    needed, code = examples()[number]
    for package in needed:
        pytest.importorskip(package, exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"{PAGE.name}, example {number + 1}", "exec"), {"__name__": "example"})
