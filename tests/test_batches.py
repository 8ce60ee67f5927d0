"""What people's loaders give: images are found, class numbers used, or a warning says why not."""

import re
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from secateur.data.batches import class_numbers, read_batch
from secateur.data.preprocess import Preprocess
from secateur.data.sources import load_images
from secateur.errors import DataError, SecateurWarning
from secateur.evaluation.evaluation_set import evaluate

IMAGES = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 4
PICTURES = [
    Image.fromarray(pixels)
    for pixels in np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
]
SCALED = Preprocess(mean=(0.5,), std=(0.5,))
Sample = namedtuple("Sample", ["picture", "number"])


class Samples(Dataset):
    """Samples of any kind, one by one."""

    def __init__(self, make) -> None:
        self.make = make

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int):
        return self.make(IMAGES[index], int(LABELS[index]))


class Bare:
    """Like a Dataset, but none."""

    __len__ = Samples.__len__

    def __getitem__(self, index: int):
        if index >= len(IMAGES):
            raise IndexError
        return IMAGES[index], int(LABELS[index])


def boxes() -> torch.Tensor:
    return torch.zeros(2, 4)


# how a sample is made of an image and its label
LABELLED = {
    "(image, label)": lambda i, n: (i, n),
    "[image, label]": lambda i, n: [i, n],
    "(image, 0-dim tensor)": lambda i, n: (i, torch.tensor(n)),
    "(image, int32 tensor)": lambda i, n: (i, torch.tensor(n, dtype=torch.int32)),
    "(image, NumPy integer)": lambda i, n: (i, np.int64(n)),
    "(image, NumPy byte)": lambda i, n: (i, np.uint8(n)),
    "(image, array of one)": lambda i, n: (i, np.array([n])),
    "(array, label)": lambda i, n: (i.numpy(), n),
    "(image, label, path)": lambda i, n: (i, n, "a.png"),
    "(image, path, label)": lambda i, n: (i, "a.png", n),
    "(path, image, label)": lambda i, n: ("a.png", i, n),
    "(image, label, index)": lambda i, n: (i, n, 1000 + n),
    "(image, dict)": lambda i, n: (i, {"name": "a", "label": n}),
    "namedtuple": lambda i, n: Sample(i, n),
    "pixel_values, labels": lambda i, n: {"pixel_values": i, "labels": n},
    "image, label": lambda i, n: {"image": i, "label": n},
    "label before image": lambda i, n: {"label": n, "mask": boxes(), "image": i},
    "img, target": lambda i, n: {"img": i, "target": n, "path": "a.png"},
    "image, nothing, label": lambda i, n: (i, None, n),
}
UNLABELLED = {
    "(image, name)": (lambda i, n: (i, "a.png"), "gives a str"),
    "(image, boxes)": (lambda i, n: (i, {"boxes": boxes(), "labels": n}), "with 'boxes', 'labels'"),
    "(image, one-hot)": (lambda i, n: (i, torch.eye(4)[n]), r"float32 of shape \(4,\)"),
    "(image, mask)": (lambda i, n: (i, torch.ones(6, 6).long()), r"int64 of shape \(6, 6\)"),
    "(image, float)": (lambda i, n: (i, 0.5), "gives a float"),
    "(image, bool)": (lambda i, n: (i, n > 2), "gives a bool"),
    "other names": (lambda i, n: {"image": i, "category": n}, "a mapping with 'category'"),
    "(image, name, float)": (lambda i, n: (i, "a", 0.5), "gives a str and a float"),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_class_numbers_of_samples_are_used(kind) -> None:
    found = load_images(Samples(LABELLED[kind]), labelled=True)
    assert torch.equal(found.tensor, IMAGES)
    assert torch.equal(found.labels, LABELS)
    assert found.warnings == []


@pytest.mark.parametrize("kind", sorted(set(LABELLED) - {"image, nothing, label"}))
@pytest.mark.parametrize("collate", [None, "samples", "columns"])
def test_class_numbers_of_batches_are_used(kind, collate) -> None:
    how = {
        None: None,
        "samples": lambda samples: samples,
        "columns": lambda samples: tuple(zip(*samples, strict=True)),
    }[collate]
    make = LABELLED[kind]
    if collate == "columns" and isinstance(make(IMAGES[0], 0), dict):
        pytest.skip("of dicts the columns are names")
    found = load_images(DataLoader(Samples(make), 5, collate_fn=how), labelled=True)
    assert torch.equal(found.tensor, IMAGES)
    if collate == "columns" and kind in ("(image, dict)", "(image, array of one)"):
        assert found.labels is None
        assert "a tuple of " in found.warnings[0]
        return
    assert torch.equal(found.labels, LABELS), found.warnings


@pytest.mark.parametrize("kind", UNLABELLED)
@pytest.mark.parametrize("batched", [False, True])
def test_what_is_no_class_number_is_told(kind, batched) -> None:
    make, says = UNLABELLED[kind]
    source = DataLoader(Samples(make), 5) if batched else Samples(make)
    found = load_images(source, labelled=True)
    assert torch.equal(found.tensor, IMAGES)
    assert found.labels is None
    (warning,) = found.warnings
    assert warning.startswith(f"no labels of {type(source).__name__} were used")
    assert "expected one class number per image" in warning
    assert load_images(source).warnings == []  # nobody asked for labels
    assert batched or re.search(says, warning)


def detector_batch(samples):
    return tuple(zip(*samples, strict=True))


def test_targets_of_detectors_are_told() -> None:
    target = lambda i, n: (i, {"boxes": boxes(), "labels": torch.tensor([n, n])})  # noqa: E731
    loader = DataLoader(Samples(target), 5, collate_fn=detector_batch)
    found = load_images(loader, labelled=True)
    assert torch.equal(found.tensor, IMAGES)
    assert found.labels is None
    assert "a tuple of dict" in found.warnings[0]


@pytest.mark.parametrize(
    "source",
    [
        PICTURES,
        [(picture, int(label)) for picture, label in zip(PICTURES, LABELS, strict=True)],
        [{"image": p, "label": int(n)} for p, n in zip(PICTURES, LABELS, strict=True)],
        [(PICTURES[:7], LABELS[:7]), (PICTURES[7:], LABELS[7:])],
        iter(PICTURES),
    ],
    ids=["pictures", "pairs", "dicts", "batches", "iterator"],
)
def test_pil_images_go_through_the_preprocess(source) -> None:
    found = load_images(source, preprocess=SCALED, labelled=True)
    assert torch.equal(found.tensor, torch.stack([SCALED(picture) for picture in PICTURES]))
    if not isinstance(source, list) or isinstance(source[0], Image.Image):
        assert found.labels is None
        assert found.warnings == []
    else:
        assert torch.equal(found.labels, LABELS)


def test_pil_images_without_mean_and_std_are_doubtful() -> None:
    (warning,) = load_images(PICTURES).warnings
    assert warning.startswith("pixels are fed in 0..1")


def test_a_list_of_pairs_and_what_is_like_a_dataset() -> None:
    pairs = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
    for source in (pairs, Bare()):
        found = load_images(source, labelled=True)
        assert torch.equal(found.tensor, IMAGES)
        assert torch.equal(found.labels, LABELS)


def test_rows_and_sequences_are_batches_where_they_have_a_label_each() -> None:
    for shape in ((8,), (4, 6)):
        rows = torch.randn(10, *shape)
        found = load_images([(rows[:6], LABELS[:6]), (rows[6:], LABELS[6:10])], labelled=True)
        assert torch.equal(found.tensor, rows)
        assert torch.equal(found.labels, LABELS[:10])


def test_labels_of_some_batches_only_are_refused() -> None:
    with pytest.raises(DataError, match="batch 1 of list has no class numbers, and batch 0 has"):
        load_images([(IMAGES[:5], LABELS[:5]), (IMAGES[5:], "names")], labelled=True)
    found = load_images([(IMAGES[:5], "names"), (IMAGES[5:], LABELS[5:])], labelled=True)
    assert found.labels is None
    assert "were used" in found.warnings[0]


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ((1, 2), "batches of type tuple"),
        ({"a": 1}, "batches of type dict"),
        ("text", "batches of type str"),
        (None, "batches of type NoneType"),
        (([IMAGES[0], IMAGES[0, :, :5]], [0, 1]), "lists of images of shapes .3, 5, 6. and"),
    ],
)
def test_batches_without_images_are_refused(batch, says) -> None:
    with pytest.raises(DataError, match=says):
        read_batch(batch, "mine")


class Broken(Samples):
    def __getitem__(self, index: int):
        if index == 7:
            raise KeyError("the eighth")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_fails_is_one_sentence(workers) -> None:
    loader = DataLoader(Broken(LABELLED["(image, label)"]), 5, num_workers=workers)
    with pytest.raises(DataError, match=r"DataLoader cannot be read \(KeyError: .*the eighth"):
        load_images(loader)


@dataclass
class Other:
    value: int


@pytest.mark.parametrize(
    "value", [None, "3", 2.0, True, Other(3), [1.0, 2.0], ["1", "2"], {"name": 1}, torch.ones(2)]
)
def test_other_things_are_no_class_numbers(value) -> None:
    assert class_numbers(value, 2) is None


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 4), nn.Flatten()).eval()


@pytest.mark.parametrize("kind", ["(image, label, path)", "pixel_values, labels", "(image, dict)"])
def test_evaluate_takes_a_loader_with_its_labels(kind) -> None:
    loader = DataLoader(Samples(LABELLED[kind]), 5)
    assert evaluate(network(), loader) == evaluate(network(), IMAGES, LABELS)


def test_evaluate_without_labels_says_what_the_loader_has_instead() -> None:
    loader = DataLoader(Samples(UNLABELLED["(image, name)"][0]), 5)
    with pytest.raises(DataError, match=r"neither labels nor a reference.*no labels of DataLoader"):
        evaluate(network(), loader)
    with pytest.warns(SecateurWarning, match="no labels of DataLoader were used"):
        assert evaluate(network(), loader, reference=network()).agreement == 100


@pytest.mark.parametrize("labels", [LABELS.tolist(), LABELS.numpy(), LABELS.int(), tuple(LABELS)])
def test_labels_given_apart_may_be_any_whole_numbers(labels) -> None:
    want = evaluate(network(), IMAGES, LABELS)
    loader = DataLoader(TensorDataset(IMAGES), 5)
    assert evaluate(network(), IMAGES, labels) == evaluate(network(), loader, labels) == want


@pytest.mark.parametrize("labels", [LABELS.float(), ["a"] * 12, torch.eye(4)[LABELS], "text"])
def test_labels_given_apart_that_are_no_numbers_are_refused(labels) -> None:
    with pytest.raises(DataError, match=r"the labels are .*expected one class number per image"):
        evaluate(network(), IMAGES, labels)


@pytest.mark.parametrize(
    "images",
    [
        list(torch.rand(4, 3, 8, 8)),
        tuple(torch.rand(2, 1, 8, 8)),
        [np.zeros((8, 8, 3), np.uint8)] * 3,
        [torch.rand(3, 8, 8), torch.rand(3, 6, 6)],
        [torch.rand(5)] * 4,
    ],
)
def test_a_list_of_single_images_is_not_read_as_batches(images) -> None:
    with pytest.raises(DataError, match=r"single images or batches.*torch\.stack"):
        load_images(images)
