"""Networks are judged on images that are read batch by batch: the same figures, few images held."""

import gc
import itertools
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import secateur
from secateur.data import streams
from secateur.data.sources import Images, load_images, open_images
from secateur.data.streams import ImageStream, Part, batched
from secateur.errors import DataError, OptionError
from secateur.evaluation.evaluation_set import EvaluationSet, evaluate
from secateur.evaluation.inference import answer, first_output
from secateur.evaluation.metrics import compare
from secateur.network.samples import as_samples

IMAGES = torch.randn(23, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(23) % 4
PIXELS = np.random.default_rng(0).integers(0, 256, (23, 6, 6, 3), dtype=np.uint8)
SCALED = secateur.Preprocess(mean=(0.5,), std=(0.5,))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


class Alive:
    """Counts the tensors that were made and are still held."""

    def __init__(self) -> None:
        self.now = self.most = self.made = 0

    def watch(self, image: torch.Tensor) -> torch.Tensor:
        self.now, self.made = self.now + 1, self.made + 1
        self.most = max(self.most, self.now)
        weakref.finalize(image, self._gone)
        return image

    def _gone(self) -> None:
        self.now -= 1


class Lazy(Dataset):
    """Images that are made when they are asked for."""

    def __init__(self, alive: Alive, count: int) -> None:
        self.alive, self.count = alive, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index >= self.count:
            raise IndexError
        generator = torch.Generator().manual_seed(index)
        return self.alive.watch(torch.randn(3, 6, 6, generator=generator)), index % 4


@pytest.fixture
def nothing_held(monkeypatch):
    """No source is small enough to be kept."""
    monkeypatch.setattr(streams, "HELD_BYTES", 0)


def folder(path, pixels=PIXELS, labels=LABELS):
    for index, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        (path / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / str(label) / f"{index:03}.png")
    return str(path)


def sources(path):
    """Name, source, preprocess and the order of the images in it."""
    np.savez(path / "d.npz", images=PIXELS, labels=LABELS.numpy())
    by_class = sorted(range(23), key=lambda index: (int(LABELS[index]), index))
    pairs = TensorDataset(torch.from_numpy(PIXELS), LABELS)
    inputs = torch.stack([SCALED(Image.fromarray(image)) for image in PIXELS])
    every = list(range(23))
    return {
        "tensors": ((inputs, LABELS), None, every),
        "bytes": ((PIXELS, LABELS), SCALED, every),
        "npz": (path / "d.npz", SCALED, every),
        "folder": (folder(path / "d"), SCALED, by_class),
        "loader": (DataLoader(pairs, batch_size=5), SCALED, every),
        "dataset": (pairs, SCALED, every),
        "generator": (iter([(inputs[:9], LABELS[:9]), (inputs[9:], LABELS[9:])]), None, every),
        "images": (Images(as_samples(inputs), "mine", LABELS), None, every),
    }, inputs


@pytest.mark.parametrize("held", [0, 2**29])
@pytest.mark.parametrize("size", [1, 4, 23, 100])
def test_streamed_figures_are_those_of_the_whole_tensor(tmp_path, monkeypatch, held, size):
    monkeypatch.setattr(streams, "HELD_BYTES", held)
    model, other = network(), network(1)
    found, inputs = sources(tmp_path)
    for name, (source, preprocess, order) in found.items():
        whole, labels = inputs[order], LABELS[order]
        want = [first_output(of, whole) for of in (model, other)]
        stream = open_images(source, preprocess=preprocess)
        for _ in range(2):  # a second pass gives the same
            got = answer([model, other], stream, batch_size=size)
            for one, wanted in zip(got.outputs, want, strict=True):
                torch.testing.assert_close(one, wanted, msg=name)
            assert torch.equal(got.labels, labels), name
        held = EvaluationSet.of(other, open_images(stream))
        assert held.evaluate(model).drop == compare(want[0], labels, want[1]).drop
        assert stream.same_images(as_samples(whole[::3])) == len(whole[::3]), name
        assert stream.same_images(as_samples(whole + 1)) == 0, name


@pytest.mark.parametrize("sizes", [(7,), (1, 1, 1, 1), (3, 0, 9, 2), (0,), (5, 5)])
@pytest.mark.parametrize("size", [1, 2, 5, 50])
def test_parts_of_any_sizes_become_batches_of_one_size(sizes, size):
    numbers = torch.arange(float(sum(sizes))).reshape(-1, 1)
    parts = [Part("p", as_samples(of), of[:, 0].long()) for of in numbers.split(list(sizes))]
    found = list(batched(parts, size))
    assert [len(of) for of in found[:-1]] == [size] * max(0, len(found) - 1)
    joined = [value for of in found for value in of.samples.only().flatten().tolist()]
    assert joined == numbers.flatten().tolist()
    assert joined == [value for of in found for value in of.labels.tolist()]


def calls(data):
    """Everything that judges networks, as functions of evaluation data."""
    images = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(9))
    how = {"allocation": "uniform", "progress": False, "recipe": "default", "method": "magnitude"}

    def prune(**target):
        return secateur.prune(network(), images, evaluation=data, **target, **how).report

    return {
        "evaluate": lambda: evaluate(network(), data),
        "evaluate against": lambda: evaluate(network(), data, reference=network(1)),
        "prune": lambda: prune(sparsity=0.3),
        "max_drop": lambda: prune(max_drop=90.0),
        "sweep": lambda: secateur.sweep(
            network(), images, sparsities=[0.2, 0.4], evaluation=data, **how
        ),
    }


@pytest.mark.parametrize("call", calls(None))
@pytest.mark.parametrize("kind", ["dataset", "loader"])
@pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")
def test_few_images_are_held_however_many_there_are(nothing_held, kind, call):
    alive = Alive()
    data = Lazy(alive, 1200)
    calls(DataLoader(data, batch_size=50) if kind == "loader" else data)[call]()
    gc.collect()
    assert alive.now == 0
    assert alive.made >= 1200
    assert alive.most <= 2 * streams.BATCH


@pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")
def test_of_a_folder_few_images_are_held(tmp_path, nothing_held):
    alive = Alive()
    pixels = np.random.default_rng(1).integers(0, 256, (300, 6, 6, 3), dtype=np.uint8)
    place = folder(tmp_path / "d", pixels, torch.arange(300) % 4)
    found = evaluate(network(), place, preprocess=lambda image: alive.watch(SCALED(image)))
    assert found.images == alive.made == 300
    assert alive.most <= streams.BATCH + 1


def test_small_sets_are_read_once_and_large_ones_at_each_pass(monkeypatch):
    for held, made in ((40 * 432, 40), (39 * 432, 120)):  # bytes of an image: 4 * 3 * 6 * 6
        monkeypatch.setattr(streams, "HELD_BYTES", held)
        alive = Alive()
        stream = open_images(Lazy(alive, 40))
        for _ in range(3):
            answer([network()], stream)
        assert alive.made == made


class Noisy(Dataset):
    """Random transforms: other images at each pass."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(3, 6, 6), index % 4


def shuffled() -> DataLoader:
    pairs = TensorDataset(torch.randn(40, 3, 6, 6), torch.arange(40) % 4)
    return DataLoader(pairs, batch_size=8, shuffle=True)


@pytest.mark.parametrize("source", [shuffled, Noisy])
def test_other_images_at_each_pass_are_told_before_anything_is_pruned(nothing_held, source):
    visited = []
    with pytest.raises(DataError, match=r"other images when it is read again.*shuffling"):
        secateur.prune(
            network(),
            torch.randn(40, 3, 6, 6),
            sparsity=0.3,
            evaluation=source(),
            progress=lambda *told: visited.append(told),
        )
    assert visited == []


@pytest.mark.parametrize("source", [shuffled, Noisy])
def test_small_sets_may_be_shuffled_for_they_are_read_once(source):
    stream = open_images(source())
    held = EvaluationSet.of(network(), stream)
    assert held.evaluate(network()).agreement == 100


def test_fewer_images_at_a_later_pass_are_told(nothing_held):
    lengths = itertools.chain([20, 20], itertools.repeat(10))
    stream = ImageStream(
        source="mine", parts=lambda: [Part("p", as_samples(IMAGES[: next(lengths)]))]
    )
    held = EvaluationSet.of(network(), stream)
    with pytest.raises(DataError, match="mine gives other images"):
        held.evaluate(network())


@pytest.mark.parametrize("size", [0, -1])
def test_batches_hold_one_image_at_least(size):
    with pytest.raises(OptionError, match=f"batch_size is {size}"):
        evaluate(network(), IMAGES, LABELS, batch_size=size)


class Reusing:
    """A loader that writes each batch where the last one was, as some prefetchers do."""

    def __init__(self, images, labels, size):
        self.images, self.labels, self.size = images, labels, size

    def __len__(self):
        return len(self.images) // self.size

    def __iter__(self):
        images = self.images[: self.size].clone()
        labels = self.labels[: self.size].clone()
        for at in range(0, len(self) * self.size, self.size):
            images.copy_(self.images[at : at + self.size])
            labels.copy_(self.labels[at : at + self.size])
            yield images, labels


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("size", [3, 10])
def test_loaders_that_use_the_memory_of_a_batch_again_give_every_image(size, kind):
    images = (torch.rand(30, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 255).to(kind)
    labels = torch.arange(30)
    wanted = load_images(images).tensor
    assert torch.equal(load_images(Reusing(images, labels, size)).tensor, wanted)
    stream = open_images(Reusing(images, labels, size))
    for part in (next(stream.batches(30)), next(stream.batches(30))):
        assert torch.equal(part.samples.only(), wanted)
        assert torch.equal(part.labels, labels)
