"""A cap on the memory of values: the same bytes, no file left, a cap too small refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from inputs import trace
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur import OptionError
from secateur.cli.app import app
from secateur.core.methods import LeastSquares
from secateur.core.patterns import Unstructured
from secateur.network.mapped import MappedValues
from secateur.network.samples import as_samples
from secateur.network.store import Spill, ValueStore, spilling
from secateur.network.stream import Stream
from secateur.pruning.needs import needs_of
from secateur.pruning.reconstruction import BlockReconstruction
from secateur.pruning.streams import DualStream
from secateur.pruning.walk import walk
from secateur.support.sizes import bytes_of, size_text

IMAGES = torch.randn(48, 3, 10, 10, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.second(self.first(x)))
        return self.head(x.mean((2, 3)))


class Attending(nn.Module):
    """With multiplications that are of no weight, or of one that cannot be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 2, stride=2)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.memory = nn.LSTM(32, 16, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).mT
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.memory(x)[0].mean(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """The folder of temporary files, and chunks of a few images."""
    folder = tmp_path / "values"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("secateur.network.samples._CHUNK_VALUES", 5 * IMAGES[0].numel())
    return folder


@pytest.fixture
def stores(monkeypatch) -> list[ValueStore]:
    """Every store with a cap."""
    found: list[ValueStore] = []
    begin = ValueStore.__init__

    def watched(store: ValueStore, spill: Spill | None = None, others=()) -> None:
        begin(store, spill, others)
        if spill is not None:
            found.append(store)

    monkeypatch.setattr(ValueStore, "__init__", watched)
    return found


def exported(network: nn.Module, folder: Path) -> str:
    path = str(folder / "net.onnx")
    torch.onnx.export(network, (IMAGES[:2],), path, dynamo=True, dynamic_shapes=({0: "n"},),
                      verbose=False)  # fmt: skip
    return path


def left(place: Path) -> list[Path]:
    """What is there of values; PyTorch has a folder of its own among temporary files."""
    return [path for path in place.iterdir() if "secateur" in path.name]


def weights(model) -> dict[str, bytes]:
    if isinstance(model, nn.Module):
        return {name: of.numpy().tobytes() for name, of in model.state_dict().items()}
    return {of.name: of.SerializeToString() for of in model.graph.initializer}


LEAST = 2 * 5 * (4 * 8 * 100) * 4  # two streams of 5 images, at most four values at a time

CALLS = {
    "unstructured": {"sparsity": 0.6},
    "recalibrated": {"sparsity": 0.6, "recipe": secateur.Recipe(recalibration="all")},
    "channels": {"max_macs": 0.6, "pattern": "channels"},
    "reconstructed": {
        "sparsity": 0.6,
        "recipe": secateur.Recipe(
            reconstruction=BlockReconstruction(layers=1, steps=3, batch=4), reconstruction_from=0.0
        ),
    },
}


@pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")
@pytest.mark.parametrize("call", CALLS)
def test_a_cap_changes_no_byte_and_leaves_no_file(network, place, stores, call) -> None:
    free = secateur.prune(network, IMAGES, **CALLS[call])
    assert stores == []
    capped = secateur.prune(network, IMAGES, **CALLS[call], memory=LEAST)
    assert weights(capped.model) == weights(free.model)
    assert any(store.written for store in stores)
    assert all(store.peak <= LEAST for store in stores)
    assert all(store.bytes <= LEAST for store in stores)
    assert left(place) == []
    assert [note for note in capped.report.notes if note not in free.report.notes]
    assert capped.report.requested["memory"] == LEAST


@pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")
def test_products_of_activations_have_no_statistics(place, stores) -> None:
    torch.manual_seed(0)
    network = Attending().eval()
    free = secateur.prune(network, IMAGES, sparsity=0.5)
    capped = secateur.prune(network, IMAGES, sparsity=0.5, memory=10 * LEAST)
    assert weights(capped.model) == weights(free.model)
    assert stores
    assert left(place) == []


@pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_cap_changes_no_byte_of_an_onnx_file(network, place, tmp_path, stores) -> None:
    path = exported(network, tmp_path)
    free, capped = (secateur.prune(path, IMAGES, sparsity=0.6, memory=of) for of in (None, LEAST))
    assert weights(capped.model) == weights(free.model)
    assert any(store.written for store in stores)
    assert all(store.peak <= LEAST for store in stores)
    assert left(place) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_files_are_gone_after_an_error(network, place, stores, error) -> None:
    seen: list[int] = []

    def stop(done: int, total: int, layer: str) -> None:
        seen.append(len([*place.rglob("*.values")]))
        if done == 2:
            raise error

    with pytest.raises(error):
        secateur.prune(network, IMAGES, sparsity=0.6, memory=LEAST, progress=stop)
    assert max(seen) > 0
    assert left(place) == []


def test_a_cap_that_is_too_small_is_refused_with_the_least_that_could_be_met(network, place):
    with pytest.raises(OptionError, match=r"memory is 1 KB, expected at least .* 5 images at a"):
        secateur.prune(network, IMAGES, sparsity=0.6, memory="1 KB")
    with pytest.raises(OptionError, match="memory is 1 KB, expected at least"):
        secateur.plan(network, IMAGES, sparsity=0.6, memory="1 KB")
    assert left(place) == []


def test_a_plan_tells_what_the_run_will_need(network) -> None:
    plan = secateur.plan(network, IMAGES, sparsity=0.6, memory="1 GB")
    (note,) = [note for note in plan.notes if note.startswith("memory:")]
    assert "48 images, all in memory" in note
    capped = secateur.plan(network, IMAGES, sparsity=0.6, memory=LEAST)
    assert any("of them in files" in note for note in capped.notes)


def test_what_is_needed_is_what_is_held(network) -> None:
    graph, x = trace(network, IMAGES[:2]), as_samples(IMAGES)
    layers = [layer for layer in graph.layers if layer.parameter is not None]
    needs = needs_of(graph, x.named(graph.inputs), layers, chunk=5, inputs="pruned",
                     max_columns=8192)  # fmt: skip
    value = 8 * 100 * 4  # an image's bytes behind a convolution
    assert 2 * 48 * value <= needs.values <= 2 * 48 * 2 * value
    assert 2 * 5 * 2 * value <= needs.least <= 2 * 5 * 4 * value
    assert needs.statistics == 6 * 4 * 72**2


def test_a_walk_holds_what_was_told_and_a_chunk_more(network, monkeypatch) -> None:
    """The dense network goes on over the addition as soon as it can: three values, not four."""
    graph, x = trace(network, IMAGES[:2]), as_samples(IMAGES)
    layers = [layer for layer in graph.layers if layer.parameter is not None]
    samples, how = x.named(graph.inputs), {"chunk": 5, "inputs": "pruned"}
    needs = needs_of(graph, samples, layers, max_columns=8192, **how)
    found: list[DualStream] = []
    begin = DualStream.__init__
    watched = lambda self, *args, **named: found.append(self) or begin(self, *args, **named)  # noqa: E731
    monkeypatch.setattr(DualStream, "__init__", watched)
    kept = [layer.weights // 2 for layer in layers]
    walk(graph, samples, layers, kept, method=LeastSquares(), pattern=Unstructured(), **how)
    value = 8 * 100 * 4
    assert 3 * 48 * value <= needs.values < 3.1 * 48 * value
    assert found[0].store.peak <= needs.values + 5 * 4 * value


def test_values_come_back_as_they_were(tmp_path) -> None:
    """The same bytes, order in memory, and shared memory, with room for nothing."""
    store = ValueStore(Spill(1, tmp_path))
    base = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    values = {
        "base": base,
        "view": base[1:, ::2],
        "several": (base.flatten(2), [torch.arange(5), 7], "text"),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(3).half().expand(4, 3),
    }
    for number in range(3):
        store.scope("dense", number).update(values)
    assert store.bytes <= 2 * 3 * 4 * 5 * 4  # the one that was put there last
    for number in range(3):
        back = {name: store["dense", number, name] for name in values}
        for name in ("base", "view", "empty", "half"):
            assert torch.equal(back[name], values[name])
            assert back[name].stride() == values[name].stride()
        assert torch.equal(back["several"][0], base.flatten(2))
        assert torch.equal(back["several"][1][0], torch.arange(5))
        assert back["several"][1][1:] == [7]
    assert [*tmp_path.glob("*.values")]
    store.clear()
    assert store.bytes == 0
    assert [*tmp_path.glob("*.values")] == []


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_mapped_values_are_as_those_in_memory(tmp_path, form) -> None:
    samples = as_samples(torch.randn(11, 3, 4, 5).contiguous(memory_format=form))
    rows = torch.arange(11) % 3 == 0
    free, capped = MappedValues(None), MappedValues(Spill(1, tmp_path))
    for call in (
        lambda of: of.joined(samples, 4, lambda part: part.map(lambda x: x * 2)),
        lambda of: of.select(samples, rows, 4),
        lambda of: of.select(samples, ~rows, 3),
    ):
        one, other = call(free).only(), call(capped).only()
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
        capped.release()
        assert torch.equal(one, other)
    assert [*tmp_path.glob("*.values")] == []


def test_each_value_is_written_once_at_most(tmp_path) -> None:
    store = ValueStore(Spill(250, tmp_path))
    scopes = [store.scope("dense", number) for number in range(4)]
    for scope in scopes:
        scope["x"] = torch.zeros(25)
    for _ in range(5):
        for scope in scopes:
            assert scope["x"].shape == (25,)
    assert store.peak <= 250
    assert store.written <= 400
    assert store.read < 5 * 400  # the first stays where it is


def test_what_others_hold_is_left_where_it_is(tmp_path) -> None:
    x = torch.zeros(100)
    store = ValueStore(Spill(1, tmp_path), [x])
    store["x"] = x[3:]
    assert store["x"].data_ptr() == x[3:].data_ptr()
    assert store.bytes == store.written == 0


def test_a_stream_under_a_cap_is_the_network(network, tmp_path) -> None:
    graph = trace(network, IMAGES[:2])
    store = ValueStore(Spill(20_000, tmp_path), graph.parameters.values())
    chunks = IMAGES.split(5)
    streams = [
        Stream(graph, graph.parameters, store.scope("dense", at, values={graph.inputs[0]: part}))
        for at, part in enumerate(chunks)
    ]
    with torch.no_grad():
        for stop in range(1, len(graph.ops) + 1):
            for stream in streams:
                stream.advance(stop)
        for stream, part in zip(streams, chunks, strict=True):
            alone = Stream(graph, graph.parameters, {graph.inputs[0]: part})
            alone.advance(len(graph.ops))
            output = graph.outputs[0]
            assert torch.equal(stream.values[output], alone.values[output])
    assert store.written


@pytest.mark.parametrize(
    ("given", "size"),
    [(5, 5), ("4 GB", 4 * 10**9), ("1.5GiB", 3 * 2**29), (" 10 kb ", 10_000), ("7 B", 7)],
)
def test_sizes_are_read_as_people_write_them(given, size) -> None:
    assert bytes_of("memory", given) == size


def test_sizes_are_written_with_three_digits() -> None:
    assert [size_text(of) for of in (7, 1234, 999_600, 5 * 10**12)] == [
        "7 B", "1.23 KB", "1 MB", "5 TB"
    ]  # fmt: skip


def test_without_a_cap_there_is_no_folder(place) -> None:
    with spilling(None) as spill:
        assert spill is None
        assert left(place) == []
    with spilling(5) as spill:
        assert spill is not None
        assert spill.folder.parent == place
    assert left(place) == []


def test_on_the_command_line_a_cap_that_is_too_small_is_one_sentence(tmp_path) -> None:
    arguments = ["prune", "secateur.example:trained", "--data", "secateur.example:calibration"]
    some = ["--sparsity", "0.5", "--max-images", "16", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, *some, "--memory", "1KB"])
    assert result.exit_code == 2
    assert "memory is 1 KB, expected at least" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
