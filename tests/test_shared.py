"""On a real network from ../shared/data; left out, and counted, where that is absent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import secateur


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
    images, labels = (part[:1500] for part in images_of.cifar10_test(shared_data))
    result = secateur.prune(network, calibration, sparsity=0.5)
    found = secateur.evaluate(result.model, images, labels, reference=network)
    plain = secateur.prune(network, calibration, sparsity=0.5, method="magnitude")
    worse = secateur.evaluate(plain.model, images, labels, reference=network)
    assert found.drop is not None
    assert worse.drop is not None
    assert found.drop < 1.5 < worse.drop
    assert result.report.sparsity == pytest.approx(0.5, abs=1e-5)
