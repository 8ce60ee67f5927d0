"""Images from every source kind, the preprocess against a slow one, and each mistake's sentence."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from secateur.data.fractals import fractal_images
from secateur.data.preprocess import Preprocess
from secateur.data.sources import Images, load_images
from secateur.errors import DataError, OptionError
from secateur.network.samples import as_samples

FLOATS = torch.randn(9, 3, 8, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(9) % 4
SCALED = Preprocess(mean=(0.0,), std=(1.0,))
BYTES = np.random.default_rng(0).integers(0, 256, (5, 7, 6, 3), dtype=np.uint8)  # N H W C


class Pairs(Dataset):
    def __len__(self):
        return len(FLOATS)

    def __getitem__(self, index):
        return FLOATS[index], int(LABELS[index])


class Stream(IterableDataset):
    def __iter__(self):
        yield from FLOATS


def save_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_folder(folder, names, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        save_png(folder / name, rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    return folder


# sources


@pytest.mark.parametrize(
    "source",
    [
        FLOATS,
        FLOATS.double(),
        FLOATS.numpy(),
        FLOATS.numpy()[::-1][::-1],
        Images(as_samples(FLOATS), "mine"),
        [FLOATS[:4], FLOATS[4:8], FLOATS[8:]],
        (batch.numpy() for batch in FLOATS.split(4)),
        DataLoader(TensorDataset(FLOATS, LABELS), batch_size=4),
        [{"image": FLOATS, "label": LABELS}],
        Pairs(),
        Stream(),
    ],
    ids=lambda source: type(source).__name__,
)
def test_every_source_gives_the_same_floats(source):
    found = load_images(source)
    assert found.tensor.dtype == torch.float32
    assert torch.equal(found.tensor, FLOATS)
    assert found.labels is None
    assert found.source


@pytest.mark.parametrize(
    "source",
    [
        DataLoader(TensorDataset(FLOATS, LABELS), batch_size=4),
        [(FLOATS[:4], LABELS[:4]), (FLOATS[4:], LABELS[4:])],
        (FLOATS, LABELS),
        (FLOATS.numpy(), LABELS.numpy()),
        Pairs(),
    ],
    ids=["loader", "batches", "tensors", "arrays", "dataset"],
)
def test_labels_come_along_only_when_asked_for(source):
    found = load_images(source, labelled=True)
    assert torch.equal(found.tensor, FLOATS)
    assert torch.equal(found.labels, LABELS)


def test_an_npz_of_floats(tmp_path):
    np.savez(tmp_path / "d.npz", images=FLOATS.numpy(), labels=LABELS.numpy())
    found = load_images(tmp_path / "d.npz", labelled=True)
    assert torch.equal(found.tensor, FLOATS)
    assert torch.equal(found.labels, LABELS)
    assert found.source == str(tmp_path / "d.npz")
    assert load_images(str(tmp_path / "d.npz")).labels is None


def test_an_npz_of_one_array_needs_no_name(tmp_path):
    np.savez(tmp_path / "d.npz", FLOATS.numpy())
    assert torch.equal(load_images(tmp_path / "d.npz").tensor, FLOATS)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["NHWC", "NCHW"])
def test_bytes_become_numbers_from_0_to_1_channels_first(tmp_path, order):
    np.savez(tmp_path / "d.npz", images=BYTES.transpose(order))
    expected = torch.from_numpy(BYTES.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    assert torch.equal(load_images(tmp_path / "d.npz").tensor, expected)


@pytest.mark.parametrize("shape", [(5, 7, 6), (5, 1, 7, 6), (5, 7, 6, 1)])
def test_grey_bytes(shape):
    grey = BYTES[..., 0]
    found = load_images(np.ascontiguousarray(grey).reshape(shape)).tensor
    assert torch.equal(found, torch.from_numpy(grey[:, None].astype(np.float32) / 255))


@pytest.mark.parametrize("source", [BYTES, [BYTES], "folder"], ids=["bytes", "batches", "folder"])
def test_images_without_mean_and_std_are_doubtful(tmp_path, source):
    if isinstance(source, str):
        source = make_folder(tmp_path / "d", ["a.png"])
    for silent in ({"mean": (0.0,)}, {"std": (1.0,)}, {"mean": (0.5,), "std": (0.5,)}):
        assert load_images(source, preprocess=Preprocess(**silent)).warnings == []
    for doubtful in (None, Preprocess(), Preprocess(size=4)):
        (warning,) = load_images(source, preprocess=doubtful).warnings
        assert warning.startswith("pixels are fed in 0..1")
        assert "--mean and --std" in warning


def test_inputs_and_made_images_are_not_doubtful():
    assert load_images(FLOATS).warnings == []
    assert load_images("fractal:3", preprocess=Preprocess(size=16)).warnings == []
    own = load_images(BYTES, preprocess=lambda image: torch.zeros(3, image.height, image.width))
    assert own.warnings == []


def test_bytes_go_through_the_preprocess():
    crop = Preprocess(size=4, mean=(0.5,))
    found = load_images(BYTES, preprocess=crop).tensor
    assert torch.equal(found, torch.stack([crop(Image.fromarray(image)) for image in BYTES]))


def test_a_folder_in_the_order_of_its_names(tmp_path):
    folder = make_folder(tmp_path / "d", ["b.png", "a.png", "deep/c.png"])
    (folder / ".hidden.png").write_text("no image")
    (folder / ".git").mkdir()
    (folder / ".git" / "x").write_text("no image")
    (folder / "Thumbs.db").write_text("no image")
    found = load_images(folder).tensor
    expected = [
        Preprocess()(Image.open(folder / name)) for name in ("a.png", "b.png", "deep/c.png")
    ]
    assert torch.equal(found, torch.stack(expected))


def test_any_function_from_an_image_to_a_tensor_serves_as_preprocess(tmp_path):
    folder = make_folder(tmp_path / "d", ["a.png"])
    found = load_images(folder, preprocess=lambda image: torch.tensor([[float(image.width)]]))
    assert torch.equal(found.tensor, torch.tensor([[[5.0]]]))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a Python file and forgets that it was imported."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("secateur_test_source",):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def write(text):
        path = tmp_path / "secateur_test_source.py"
        path.write_text(text)
        return path

    yield write
    sys.modules.pop("secateur_test_source", None)


def test_a_reference_to_a_function_or_to_an_object(written):
    path = written(
        "import torch\ndef images():\n    return [torch.ones(2, 3)]\nthere = images()[0]"
    )
    for name in ("images", "there"):
        found = load_images(f"{path}:{name}")
        assert torch.equal(found.tensor, torch.ones(2, 3))
        assert found.source == f"{path}:{name}"


def test_a_reference_may_give_a_path_or_labels(written, tmp_path):
    make_folder(tmp_path / "d", ["a.png"])
    path = written(
        f"import torch\ndef place():\n    return {str(tmp_path / 'd')!r}\n"
        "def pair():\n    return torch.ones(2, 3), torch.tensor([4, 5])\n"
    )
    assert load_images(f"{path}:place").tensor.shape == (1, 3, 6, 5)
    assert load_images(f"{path}:pair", labelled=True).labels.tolist() == [4, 5]


# the preprocess


def slow_resize(image, width, height):
    """Bilinear with the triangle widened by the scale (antialiased), in float64."""

    def weights(old, new):
        scale = max(old / new, 1.0)
        centre = (np.arange(new)[:, None] + 0.5) * old / new
        w = np.maximum(0, 1 - np.abs(np.arange(old)[None] + 0.5 - centre) / scale)
        return w / w.sum(1, keepdims=True)

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns)


def slow_preprocess(image, size, resize, mean, std):
    height, width = image.shape[:2]
    if resize is not None:
        factor = resize / min(width, height)
        width, height = max(resize, int(width * factor)), max(resize, int(height * factor))
        image = slow_resize(image, width, height)
    if size is not None:
        top, left = round((height - size) / 2), round((width - size) / 2)
        image = image[top : top + size, left : left + size]
    return ((image / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)


@pytest.mark.parametrize("shape", [(40, 61, 3), (61, 40, 3), (33, 33, 3), (9, 14, 3)])
@pytest.mark.parametrize(("size", "resize"), [(None, None), (16, 20), (16, None), (None, 17)])
def test_preprocess_is_resize_crop_scale_normalise(shape, size, resize):
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    found = Preprocess(size=size, resize=resize, mean=mean, std=std)(Image.fromarray(image))
    expected = slow_preprocess(image, size, resize or size, mean, std)
    assert found.shape == expected.shape
    step = 1.01 / 255 / min(std)  # Pillow rounds to whole pixel values, after each axis
    assert np.abs(found.numpy() - expected).max() <= (2 * step if size or resize else 1e-5)


@pytest.mark.parametrize(
    ("old", "size", "resize", "new"),
    [
        ((30, 20), None, None, (30, 20)),
        ((30, 20), None, 10, (15, 10)),
        ((20, 31), None, 10, (10, 15)),
        ((30, 20), 10, None, (10, 10)),
        ((30, 20), 8, 12, (8, 8)),
        ((3, 5), 8, None, (8, 8)),
    ],
)
def test_preprocess_sizes(old, size, resize, new):
    found = Preprocess(size=size, resize=resize)(Image.new("RGB", old))
    assert found.shape == (3, new[1], new[0])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_mode_get_the_channels_asked_for(mode, channels):
    found = Preprocess(channels=channels)(Image.new("RGB", (4, 3), "white").convert(mode))
    assert torch.equal(found, torch.ones(channels, 3, 4))


def test_one_mean_serves_all_channels():
    white = Image.new("RGB", (2, 2), "white")
    assert torch.equal(Preprocess(mean=(0.5,), std=(0.25,))(white), torch.full((3, 2, 2), 2.0))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"size": 0}, "size is 0"),
        ({"resize": -1}, "resize is -1"),
        ({"size": 9, "resize": 8}, "resize is 8 and size 9"),
        ({"mean": (0.0, 0.0)}, "mean has 2 values, expected 3"),
        ({"std": (1.0,) * 3, "channels": 1}, "std has 3 values, expected 1"),
        ({"std": (1.0, 0.0, 1.0)}, "std is .*above 0"),
    ],
)
def test_a_preprocess_that_cannot_be_is_refused(options, says):
    with pytest.raises(OptionError, match=says):
        Preprocess(**options)


def test_images_have_one_or_three_channels():
    with pytest.raises(OptionError, match=r"channels is 4, expected 1 .* or 3 .*fractal:300"):
        Preprocess(channels=4)(Image.new("RGB", (4, 3)))


# made images


MAKING = Preprocess(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def test_fractals_come_normalised_and_say_what_they_are():
    found = load_images("fractal:6", preprocess=MAKING, seed=4)
    pixels = fractal_images(6, size=16, seed=4)
    assert torch.equal(found.tensor, MAKING.normalise(pixels))
    white = torch.full((3, 1, 1), 255, dtype=torch.uint8)
    assert MAKING.normalise(white).flatten().tolist() == pytest.approx([2.5, 2.0, 1.75])
    assert found.source == "fractal:6"
    assert found.synthetic == "6 fractal images, seed 4"
    assert load_images(torch.rand(6, 3, 4, 4)).synthetic is None


@pytest.mark.parametrize(("kind", "what"), [("gaussian", "Gaussian noise"), ("pink", "1/f noise")])
def test_noise_comes_as_inputs(kind, what):
    found = load_images(f"{kind}:40", preprocess=MAKING)
    assert found.tensor.shape == (40, 3, 16, 16)
    assert float(found.tensor.mean()) == pytest.approx(0, abs=0.05)
    assert float(found.tensor.std()) == pytest.approx(1, abs=0.05)
    assert found.synthetic == f"40 {what}, seed 0"


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_made_images_have_any_number_of_channels(channels):
    found = load_images("fractal:3", preprocess=Preprocess(size=16, channels=channels))
    assert found.tensor.shape == (3, channels, 16, 16)


def test_the_limit_holds_for_made_images_too():
    found = load_images("fractal:30", preprocess=MAKING, max_images=5)
    assert len(found.tensor) == 5
    assert found.notes == ["5 of 30, the most allowed"]


@pytest.mark.parametrize(
    ("text", "preprocess", "says"),
    [
        ("fractal:many", MAKING, "got fractal:many, expected how many to make"),
        ("fractal:0", MAKING, "got fractal:0, expected how many to make"),
        ("pink:5", None, "pink:5 has no size"),
        ("fractal:5", Preprocess(), "--size"),
        ("fractals:5", MAKING, "no such file or folder"),
    ],
)
def test_made_images_need_a_number_and_a_size(text, preprocess, says):
    with pytest.raises(DataError, match=says):
        load_images(text, preprocess=preprocess)


# how many


def test_max_images_is_a_seeded_choice_in_order():
    data = torch.arange(200.0).reshape(-1, 1)
    numbers = [
        load_images(data, max_images=20, seed=seed).tensor.flatten().tolist() for seed in (0, 0, 1)
    ]
    assert numbers[0] == numbers[1] != numbers[2]
    for chosen in numbers:
        assert chosen == sorted(set(chosen))
        assert len(chosen) == 20
    assert numbers[0] != data.flatten().tolist()[:20]


def test_the_choice_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    load_images(FLOATS, max_images=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_choice_is_noted_only_when_there_was_one():
    assert load_images(FLOATS, max_images=9).notes == []
    assert load_images(FLOATS, max_images=None).notes == []
    assert load_images(FLOATS, max_images=4, seed=7).notes == ["4 of 9 images, chosen with seed 7"]


def test_labels_are_chosen_with_their_images(tmp_path):
    folder = tmp_path / "d"
    for index in range(8):
        save_png(folder / f"{index}.png", np.full((2, 2, 3), index, np.uint8))
    lines = [f"{index}.png,{index}" for index in range(8)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *lines]))
    found = load_images(folder, max_images=5, labelled=True)
    assert (255 * found.tensor[:, 0, 0, 0]).round().tolist() == found.labels.tolist()
    assert len(found.labels) == 5


def test_of_batches_the_first_images_are_taken_and_no_more_are_read():
    read = []

    def batches():
        for index in range(3):
            read.append(index)
            yield FLOATS[3 * index : 3 * index + 3], LABELS[3 * index : 3 * index + 3]

    found = load_images(batches(), max_images=4, labelled=True)
    assert torch.equal(found.tensor, FLOATS[:4])
    assert torch.equal(found.labels, LABELS[:4])
    assert read == [0, 1]
    assert found.notes == ["the first 4 images of generator"]


@pytest.mark.parametrize("number", [0, -3])
@pytest.mark.parametrize("source", [FLOATS, "folder"], ids=["tensor", "folder"])
def test_max_images_below_one_is_refused(tmp_path, source, number):
    if isinstance(source, str):
        source = make_folder(tmp_path / "d", ["a.png", "b.png", "c.png", "d.png"])
    with pytest.raises(OptionError, match=f"max_images is {number}"):
        load_images(source, max_images=number)


# labels of folders


def test_class_folders_are_numbered_in_sorted_order(tmp_path):
    folder = make_folder(tmp_path / "d", ["dog/1.png", "cat/2.png", "eel/deep/0.png", "cat/1.png"])
    assert load_images(folder, labelled=True).labels.tolist() == [0, 0, 1, 2]
    assert load_images(folder).labels is None


def test_images_beside_class_folders_are_refused(tmp_path):
    folder = make_folder(tmp_path / "d", ["dog/1.png", "2.png", "3.png"])
    with pytest.raises(DataError, match=r"^2 images lie beside the class folders of .*\(dog\)"):
        load_images(folder, labelled=True)
    assert len(load_images(folder).tensor) == 3  # nobody asked for labels
    (folder / "labels.csv").write_text("file,label\n2.png,0\n3.png,1\ndog/1.png,0\n")
    assert load_images(folder, labelled=True).labels.tolist() == [0, 1, 0]


def test_a_class_folder_without_images_is_refused_for_the_others_would_move_up(tmp_path):
    folder = make_folder(tmp_path / "d", ["ant/1.png", "dog/1.png"])
    (folder / ".cache").mkdir()
    assert load_images(folder, labelled=True).labels.tolist() == [0, 1]
    (folder / "cat").mkdir()
    with pytest.raises(DataError, match=r"class folders without images \(cat\)"):
        load_images(folder, labelled=True)
    assert len(load_images(folder).tensor) == 2


def test_class_folders_that_only_hold_folders_are_doubtful(tmp_path):
    folder = make_folder(tmp_path / "d", ["train/dog/1.png", "val/cat/1.png", "x/1.png"])
    (warning,) = load_images(folder, preprocess=SCALED, labelled=True).warnings
    assert "no images of their own (train, val)" in warning
    assert load_images(folder, preprocess=SCALED).warnings == []


def test_fewer_class_folders_than_outputs_are_doubtful(tmp_path):
    folder = make_folder(tmp_path / "d", [f"{name}/1.png" for name in "dbca"])
    found = load_images(folder, preprocess=SCALED, labelled=True)
    assert found.warnings_for(4) == []
    (warning,) = found.warnings_for(1000)
    assert "4 class folders for a network with 1,000 outputs" in warning
    assert "(a = 0, b = 1, c = 2, ...)" in warning
    (folder / "labels.csv").write_text(
        "file,label\n" + "\n".join(f"{name}/1.png,{ord(name)}" for name in "abcd")
    )
    found = load_images(folder, preprocess=SCALED, labelled=True)
    assert found.warnings_for(1000) == []  # numbers were given


def test_a_flat_folder_has_no_labels(tmp_path):
    assert load_images(make_folder(tmp_path / "d", ["1.png"]), labelled=True).labels is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])  # with the mark that Excel writes
def test_a_table_of_labels_wins_over_class_folders(tmp_path, encoding):
    folder = make_folder(tmp_path / "d", ["a/1.png", "b/2.png"])
    (folder / "labels.csv").write_text("file,label\nb/2.png,7\na/1.png,9\nz.png,1\n", encoding)
    assert load_images(folder, labelled=True).labels.tolist() == [9, 7]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("file,label\n1.png,0\n", "no label for 2.png"),
        ("file,label\n1.png,cat\n2.png,dog\n", "labels.csv cannot be read.*class numbers"),
        ("name,class\n1.png,0\n", "labels.csv cannot be read.*columns file,label"),
        ("file,label\n1.png\n", "labels.csv cannot be read"),
    ],
)
def test_a_broken_table_of_labels_is_named(tmp_path, table, says):
    folder = make_folder(tmp_path / "d", ["1.png", "2.png"])
    (folder / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=says):
        load_images(folder, labelled=True)
    assert len(load_images(folder).tensor) == 2  # nobody asked for labels


# mistakes


def one_nan():
    broken = FLOATS.clone()
    broken[4, 1, 2, 3] = float("nan")
    broken[6] = float("inf")
    return broken


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (torch.zeros(0, 3, 8, 8), "holds no images"),
        ([], "gives no batches"),
        ([torch.zeros(0, 3, 8, 8)], "holds no images"),
        (torch.zeros(4), r"shape \(4,\), expected a batch"),
        (torch.zeros(4, 3, dtype=torch.complex64), "expected a batch"),
        (torch.zeros(4, 3, 2, 2, dtype=torch.int64), r"holds int64, whose range is not known"),
        (torch.zeros(4, 5, 8, 7, dtype=torch.uint8), r"in torch\.uint8, expected"),
        (one_nan(), r"NaN or Inf \(the first such image is number 4\)"),
        (7, "the data are a int"),
        ({"boxes": FLOATS}, "the data are a dict"),
        ([(1, 2)], "batches of type tuple"),
        (["a", "b"], "batches of type str"),
        ([FLOATS, FLOATS[..., :5]], r"batch 1 has shape \(3, 8, 5\).*one size"),
    ],
)
def test_data_that_cannot_be_used_are_refused(data, says):
    with pytest.raises(DataError, match=says):
        load_images(data)


def test_floats_and_a_preprocess_exclude_each_other():
    with pytest.raises(DataError, match="floats, which count as preprocessed"):
        load_images(FLOATS, preprocess=Preprocess())


@pytest.mark.parametrize("labels", [LABELS[:8], LABELS.float(), LABELS[:, None]])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(DataError, match="expected one class number per image"):
        load_images((FLOATS, labels), labelled=True)


@pytest.mark.parametrize("labels", [np.array(["cat"] * 9), np.array([None] * 9)])
def test_labels_that_are_no_numbers_are_refused(labels):
    with pytest.raises(DataError):
        load_images((FLOATS, labels), labelled=True)


def test_labels_of_any_integer_type_become_class_numbers():
    found = load_images((FLOATS, LABELS.numpy().astype(np.uint16)), labelled=True)
    assert found.labels.tolist() == LABELS.tolist()
    assert found.labels.dtype == torch.int64


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere.*check the path"):
        load_images(tmp_path / "nowhere")


def test_a_reference_that_leads_nowhere(written, tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*absent\.py"):
        load_images(f"{tmp_path / 'absent.py'}:images")
    with pytest.raises(DataError, match=r"no 'imags'.*did you mean images"):
        load_images(f"{written('def images(): return 1')}:imags")


def test_a_function_that_raises_is_quoted(written):
    path = written("def images():\n    raise OSError('the drive is gone')")
    with pytest.raises(DataError, match="raised OSError: the drive is gone"):
        load_images(f"{path}:images")


def test_a_module_that_exits_does_not_end_the_program(written):
    path = written("import sys\nsys.exit(0)")
    with pytest.raises(DataError, match="SystemExit"):
        load_images(f"{path}:images")


def test_a_single_image_file_is_no_source(tmp_path):
    path = save_png(tmp_path / "a.png", BYTES[0])
    with pytest.raises(DataError, match=r"a\.png is a single file.*pass the folder"):
        load_images(path)


@pytest.mark.parametrize("held", [b"", b"text", b"PK\x03\x04 and then nothing"])
def test_a_broken_npz_is_named(tmp_path, held):
    (tmp_path / "d.npz").write_bytes(held)
    with pytest.raises(DataError, match=r"d\.npz is not a readable \.npz"):
        load_images(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": FLOATS, "b": FLOATS}, "holds the arrays a, b, expected one named 'images'"),
        ({"images": np.array([None])}, r"not a readable \.npz"),
        ({"images": FLOATS, "labels": LABELS[:5]}, "one class number per image"),
    ],
)
def test_an_npz_of_something_else_is_named(tmp_path, arrays, says):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=says):
        load_images(tmp_path / "d.npz", labelled=True)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=f"{re.escape(str(tmp_path))} holds no images"):
        load_images(tmp_path)


@pytest.mark.parametrize("damage", ["text", "truncated", "flipped"])
def test_a_file_that_is_no_image_is_named(tmp_path, damage):
    folder = make_folder(tmp_path / "d", ["a.png", "b.png"])
    held = (folder / "b.png").read_bytes()
    broken = {
        "text": b"read me",
        "truncated": held[: len(held) // 2],
        "flipped": held[:60] + bytes(255 - byte for byte in held[60:]),
    }
    (folder / "b.png").write_bytes(broken[damage])
    with pytest.raises(DataError, match=r"b\.png is not a readable image.*remove or repair"):
        load_images(folder)


def test_images_of_different_sizes_need_a_size(tmp_path):
    folder = make_folder(tmp_path / "d", ["a.png"])
    save_png(folder / "b.png", BYTES[0])
    with pytest.raises(DataError, match=r"b\.png has shape \(3, 7, 6\) and .*a\.png.*--size"):
        load_images(folder)
    assert load_images(folder, preprocess=Preprocess(size=5)).tensor.shape == (2, 3, 5, 5)


def test_arrays_of_text_are_no_images(tmp_path):
    np.savez(tmp_path / "d.npz", images=np.array(["cat"]))
    for data in (tmp_path / "d.npz", np.array(["cat"])):
        with pytest.raises(DataError):
            load_images(data)


@pytest.mark.parametrize("number", ["3" * 30, "x" * 200_000])
def test_class_numbers_that_are_none_are_one_sentence(tmp_path, number):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(f"file,label\na.png,{number}\n")
    with pytest.raises(DataError, match="expected the columns file,label with class numbers"):
        load_images(str(tmp_path), preprocess=Preprocess(mean=(0,), std=(1,)), labelled=True)
