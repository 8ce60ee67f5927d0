"""The benchmark on other networks runs; its made-up inputs are what their labels say."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_a_row_of_the_shipped_network(tmp_path: Path) -> None:
    options = ["--networks", "fashion", "--sparsities", "0.8", "--runs", "magnitude, uniform"]
    script = ROOT / "benchmarks" / "elsewhere.py"
    command = [sys.executable, "-W", "ignore", script, tmp_path, *options]
    for _ in range(2):  # the second time there is nothing left to measure
        subprocess.run([*command, "--out", "rows.csv"], check=True, cwd=tmp_path)
    with (tmp_path / "rows.csv").open(newline="") as rows:
        (row,) = csv.DictReader(rows)
    assert row["result"] == "pruned"
    assert float(row["dense_top1"]) > 92
    assert float(row["top1"]) < float(row["dense_top1"]) - 20


def test_a_tone_has_the_pitch_of_its_label() -> None:
    from elsewhere_networks import tones

    sound, bins = tones(10, seed=3)
    time = torch.arange(1024, dtype=torch.float64) / 16_000
    steps = torch.arange(-60, 61, 2)  # cents beside the label's pitch
    for wave, step in zip(sound.double(), bins, strict=True):
        pitches = 10 * 2 ** ((20 * step + 1997.38 + steps) / 1200)
        phases = 2 * torch.pi * pitches[:, None, None] * torch.arange(1, 9)[:, None] * time
        basis = torch.cat([phases.sin(), phases.cos()], 1).mT
        fitted = basis @ torch.linalg.lstsq(basis, wave[:, None].expand(len(steps), -1, 1)).solution
        left = (wave - fitted[..., 0]).square().mean(1)  # of a variance of 1
        assert left.min() < 0.05
        assert abs(steps[left.argmin()]) <= 12


def test_a_turned_line_is_an_upright_one_upside_down() -> None:
    from elsewhere_networks import text_lines

    lines, labels = text_lines(200, seed=0)
    again, _ = text_lines(200, seed=0)
    assert torch.equal(lines, again)
    ink = (lines - lines.median(dim=3, keepdim=True).values).abs().mean(1)
    left = ink[:, :, :30].mean((1, 2)) - ink[:, :, -30:].mean((1, 2))
    assert left[labels == 0].mean() > 0  # text begins at the left
    assert left[labels == 1].mean() < 0
