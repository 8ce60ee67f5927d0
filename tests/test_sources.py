"""Every function takes every source of images, with the same result."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import secateur
from secateur.data.preprocess import ModelPreprocess, Preprocess
from secateur.data.sources import Data, load_images, open_images
from secateur.errors import DataError
from secateur.export.int8 import Quantized

HOW = {"method": "least-squares", "allocation": "uniform", "progress": False}
GREY = Preprocess(size=8, mean=(0.5,), std=(0.25,), channels=1)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
INPUTS = GREY.normalise(torch.from_numpy(PIXELS)[:, None])
LABELS = torch.arange(40) // 10


class Samples(Dataset):
    """Image by image, with a class number."""

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return INPUTS[row], int(LABELS[row])


def source() -> tuple[Tensor, Tensor]:
    return INPUTS, LABELS


def folder(place: Path) -> Path:
    """Images in the folders of their classes, in the order of `INPUTS`."""
    for row in range(40):
        inside = place / "images" / str(int(LABELS[row]))
        inside.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[row]).save(inside / f"{row:02}.png")
    return place / "images"


def npz(place: Path) -> str:
    np.savez(place / "images.npz", images=INPUTS.numpy(), labels=LABELS.numpy())
    return str(place / "images.npz")


def reference(place: Path) -> str:
    (place / "of_sources.py").write_text("from test_sources import source\n")
    return f"{place / 'of_sources.py'}:source"


# By name: how the source is made in a folder. All hold the same images with the same labels.
LABELLED: dict[str, Callable[[Path], Any]] = {
    "tensors": lambda _: (INPUTS, LABELS),
    "arrays": lambda _: (INPUTS.numpy(), LABELS.numpy()),
    "labels in a list": lambda _: (INPUTS, LABELS.tolist()),
    "batch of a loader": lambda _: next(iter(DataLoader(Samples(), batch_size=40))),
    "loader": lambda _: DataLoader(TensorDataset(INPUTS, LABELS), batch_size=16),
    "batches": lambda _: list(zip(INPUTS.split(16), LABELS.split(16), strict=True)),
    "iterator": lambda _: iter(zip(INPUTS.split(16), LABELS.split(16), strict=True)),
    "mappings": lambda _: [{"pixel_values": INPUTS, "labels": LABELS}],
    "dataset": lambda _: Samples(),
    "pixels": lambda _: (PIXELS, LABELS),
    "folder": folder,
    ".npz": npz,
    "file.py:callable": reference,
    "loaded": lambda _: load_images((INPUTS, LABELS), labelled=True),
    "opened": lambda _: open_images((INPUTS, LABELS)),
}
PLAIN: dict[str, Callable[[Path], Any]] = {
    "tensor": lambda _: INPUTS,
    "array": lambda _: INPUTS.numpy(),
    "plain batches": lambda _: INPUTS.split(16),
    "two batches": lambda _: (INPUTS[:20], INPUTS[20:]),
    "list of two batches": lambda _: [INPUTS[:20], INPUTS[20:]],
}
PICTURES = ("pixels", "folder")


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()]
    return nn.Sequential(*body, nn.Linear(16, 4)).eval()


def pruned(data: Data, how: Preprocess | None) -> Any:
    result = secateur.prune(network(), data, sparsity=0.5, preprocess=how, **HOW)
    return result.model.state_dict()


def planned(data: Data, how: Preprocess | None) -> Any:
    options = {**HOW, "allocation": "sensitivity"}
    layers = secateur.plan(network(), data, sparsity=0.5, preprocess=how, **options).layers
    return [dataclasses.astuple(layer) for layer in layers]


def swept(data: Data, how: Preprocess | None) -> Any:
    found = secateur.sweep(network(), data, sparsities=[0.5], preprocess=how, **HOW)
    return [layer.relative_error for layer in found.reports[0].layers]


def evaluated(data: Data, how: Preprocess | None) -> Any:
    return dataclasses.astuple(secateur.evaluate(network(), data, preprocess=how))


def compared(data: Data, how: Preprocess | None) -> Any:
    """Without labels, whatever the source has."""
    dense = nn.Sequential(network(), nn.Tanh())
    found = secateur.evaluate(network(), data, reference=dense, preprocess=how)
    return found.agreement, found.kl


def judged(data: Data, how: Preprocess | None) -> Any:
    others = load_images(255 - PIXELS, preprocess=GREY)
    result = secateur.prune(network(), others, sparsity=0.5, evaluation=data, preprocess=how, **HOW)
    return dataclasses.astuple(result.report.evaluation["pruned"])


FUNCTIONS = [pruned, planned, swept, compared]
NEED_LABELS = [evaluated, judged]


def check(function: Callable[..., Any], name: str, expected: Any, place: Path) -> None:
    found = function({**LABELLED, **PLAIN}[name](place), GREY if name in PICTURES else None)
    if isinstance(expected, dict):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    else:
        assert found == expected


@functools.cache
def on_tensors(function: Callable[..., Any]) -> Any:
    return function((INPUTS, LABELS) if function in NEED_LABELS else INPUTS, None)


@pytest.mark.parametrize("name", [*LABELLED, *PLAIN])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda of: of.__name__)
def test_every_function_takes_every_source(function, name, tmp_path) -> None:
    check(function, name, on_tensors(function), tmp_path)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("function", NEED_LABELS, ids=lambda of: of.__name__)
def test_evaluations_take_the_labels_of_every_source(function, name, tmp_path) -> None:
    check(function, name, on_tensors(function), tmp_path)


def test_labels_given_beside_the_images_are_those_of_a_pair() -> None:
    dense = network()
    expected = secateur.evaluate(dense, (INPUTS, LABELS))
    assert secateur.evaluate(dense, INPUTS, LABELS) == expected
    assert secateur.evaluate(dense, (INPUTS, LABELS.flip(0)), LABELS) == expected


@pytest.mark.parametrize(
    ("function", "name"),
    [(pruned, "gaussian"), (planned, "pink"), (swept, "gaussian"), (compared, "fractal")],
)
def test_synthetic_images_are_the_same_for_every_function(function, name) -> None:
    images = load_images(f"{name}:40", preprocess=GREY)
    found, expected = function(f"{name}:40", GREY), function(images, None)
    assert str(found) == str(expected)


@pytest.mark.parametrize("name", [*LABELLED, *PLAIN])
def test_int8_is_fitted_to_every_source(name, tmp_path, monkeypatch) -> None:
    fitted = []
    monkeypatch.setattr(
        "secateur.export.int8.in_int8",
        lambda _, images: fitted.append(images) or Quantized(model=None),
    )
    source = {**LABELLED, **PLAIN}[name](tmp_path)
    secateur.quantize(network(), source, preprocess=GREY if name in PICTURES else None)
    assert torch.equal(fitted[0].only(), INPUTS)


def test_targets_of_another_kind_are_left_out_of_calibration() -> None:
    """They are an error where they would be used."""
    for targets in (torch.rand(40), torch.rand(40, 4), LABELS[:, None], torch.rand(40, 8, 8)):
        assert torch.equal(load_images((INPUTS, targets)).tensor, INPUTS)
        with pytest.raises(DataError, match="expected one class number per image"):
            secateur.evaluate(network(), (INPUTS, targets))


def test_evaluate_prepares_images_as_a_network_of_a_hub_says(tmp_path) -> None:
    """As prune does; what is passed comes first."""
    model = network()
    model.secateur_preprocess = ModelPreprocess(**vars(GREY))  # as `load_from_hub` does
    expected = secateur.evaluate(network(), folder(tmp_path), preprocess=GREY)
    assert secateur.evaluate(model, tmp_path / "images") == expected
    dense = secateur.evaluate(network(), tmp_path / "images", reference=model)
    assert dense.top1 == expected.top1
    other = dataclasses.replace(GREY, mean=(0.0,))
    changed = secateur.evaluate(model, tmp_path / "images", reference=network(), preprocess=other)
    assert changed.top1 == secateur.evaluate(network(), tmp_path / "images", preprocess=other).top1


def test_plan_and_quantize_prepare_images_as_a_network_of_a_hub_says(tmp_path, monkeypatch) -> None:
    fitted = []
    monkeypatch.setattr(
        "secateur.export.int8.in_int8",
        lambda _, images: fitted.append(images) or Quantized(model=None),
    )
    model = network()
    model.secateur_preprocess = ModelPreprocess(**vars(GREY))
    secateur.quantize(model, folder(tmp_path))
    assert torch.equal(fitted[0].only(), INPUTS)
    pictures = tmp_path / "images"
    plan = secateur.plan(
        model, pictures, evaluation="fractal:8", sparsity=0.5, allocation="uniform"
    )
    assert plan.sparsity == pytest.approx(0.5, abs=0.01)


def test_images_that_are_read_already_may_be_too_many() -> None:
    images = load_images(INPUTS)
    few = load_images(images, max_images=7, seed=3)
    assert torch.equal(few.tensor, load_images(INPUTS, max_images=7, seed=3).tensor)
    assert few.notes == ["7 of 40 images, chosen with seed 3"]
    assert load_images(images, max_images=40) is images


PUBLIC = [secateur.prune, secateur.plan, secateur.sweep, secateur.evaluate, secateur.quantize]


@pytest.mark.parametrize("function", [*PUBLIC, load_images, open_images])
def test_data_have_one_type(function) -> None:
    kinds = get_type_hints(function)
    assert kinds["data"] == Data
    assert kinds.get("evaluation", Data | None) == Data | None
