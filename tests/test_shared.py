"""On a real network from ../shared/data; left out, and counted, where that is absent."""

from __future__ import annotations

import csv
import dataclasses
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import secateur
from secateur import RECIPES, BiasCorrection, WeightCorrection


@pytest.mark.shared
def test_resnet20_keeps_its_accuracy_at_half_the_weights(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    for name in ("networks", "shared_data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import networks
    import shared_data as images_of

    network = networks.load_resnet20(shared_data)
    calibration = images_of.cifar10_calibration(shared_data, count=300, draw=0)
    images, labels = (part[:600] for part in images_of.cifar10_test(shared_data))
    result = secateur.prune(network, calibration, sparsity=0.5)
    found = secateur.evaluate(result.model, images, labels, reference=network)
    paper = {"method": "magnitude", "allocation": "normalized-magnitude"}
    plain = secateur.prune(network, calibration, sparsity=0.5, **paper)
    worse = secateur.evaluate(plain.model, images, labels, reference=network)
    assert found.drop is not None
    assert worse.drop is not None
    assert found.drop < 1.5 < worse.drop
    assert result.report.sparsity == pytest.approx(0.5, abs=1e-5)


@pytest.mark.shared
def test_the_headline_script_runs_on_the_images_at_hand(shared_data: Path, tmp_path: Path) -> None:
    """The script for ImageNet, on a few images and the small network, with a short recipe."""
    for name, source in (("train", "imagenet_train_1000"), ("val", "imagenet_val_650")):
        (tmp_path / name).mkdir()
        archive = next((shared_data / source).glob("*.tar"))
        with tarfile.open(archive) as held:
            members = [member for member in held.getmembers() if member.isfile()][:24]
            held.extractall(tmp_path / name, members=members, filter="data")
    table = (shared_data / "imagenet_val_650" / "labels.csv").read_text()
    (tmp_path / "val" / "labels.csv").write_text(table)
    method = BiasCorrection(base=WeightCorrection())
    dataclasses.replace(RECIPES["paper"], method=method).save(tmp_path / "brief.toml")
    root = Path(__file__).parents[1]
    weights = shared_data / "efficientnet_lite0" / "efficientnet-lite0-57934424.pth"
    options = f"""
        --network efficientnet_lite0 --weights {weights} --images 8 --sparsities 0.3
        --calibration {tmp_path / "train"} --val {tmp_path / "val"} --out {tmp_path / "rows.csv"}
        --recipes {tmp_path / "brief.toml"}
    """.split()
    script = root / "benchmarks" / "headline.py"
    subprocess.run([sys.executable, "-W", "ignore", script, *options], check=True, cwd=tmp_path)
    with (tmp_path / "rows.csv").open(newline="") as rows:
        found = list(csv.DictReader(rows))
    steps = ["magnitude", "channel-alignment", "weight-correction", "bias-correction"]
    assert [row["step"] for row in found] == 2 * steps
    assert [row["data"] for row in found] == 4 * ["real"] + 4 * ["fractal"]
    assert all(float(row["dense_top1"]) > 70 for row in found)
    assert float(found[3]["top1"]) > 60
