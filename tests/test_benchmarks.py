"""The benchmarks keep up with the package: they can be imported, and time a forward pass."""

import importlib
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
OPTIONAL = {"plots": "matplotlib", "int8": "nncf", "third_party": "openvino"}


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_it_can_be_imported(name: str) -> None:
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    importlib.import_module(name)


def test_a_forward_pass_takes_as_many_images_at_a_time_as_prune_does() -> None:
    cost = importlib.import_module("cost")
    sizes: list[int] = []

    def model(batch: torch.Tensor) -> None:
        sizes.append(len(batch))

    images = torch.zeros(10, 3, 224, 224)
    assert cost.forward_seconds(model, images) > 0
    assert sizes == [cost.chunk_size(images), 10 - cost.chunk_size(images)]
