"""A run that is stopped and called again gives the bytes of one that nobody disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur import frontends
from secateur.core.methods import ADMM, LeastSquares
from secateur.core.methods.adam_calibration import AdamCalibration
from secateur.core.patterns import Channels
from secateur.errors import OptionError, SecateurWarning
from secateur.hardware.compare_latency import Ratio
from secateur.hardware.layer_shape import LayerShape
from secateur.hardware.layer_times import LayerRow, LayerTimes
from secateur.pruning import journal as journals
from secateur.pruning.journal import opened
from secateur.pruning.reconstruction import BlockReconstruction
from secateur.support import interruptions

IMAGES = torch.randn(48, 3, 10, 10, generator=torch.Generator().manual_seed(0))
JUDGED = torch.randn(400, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def recipe(**changes: Any) -> Any:
    """Two walks, with blocks trained after each."""
    plain = {
        "method": ADMM(iterations=5),
        "schedule": (0.5, 0.0),
        "schedule_from": 0.0,
        "reconstruction": BlockReconstruction(layers=1, steps=4, batch=8),
        "reconstruction_from": 0.0,
    }
    return secateur.Recipe(**{**plain, **changes})


def network() -> nn.Module:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for width in (3, 12, 12, 12):
        layers += [nn.Conv2d(width, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1200, 5)).eval().requires_grad_(False)


class StoppedError(Exception):
    """Raised in the middle of a run."""


def stopping_at(visit: int) -> Any:
    def progress(done: int, total: int, layer: str) -> None:
        if done == visit:
            raise StoppedError

    return progress


def held(result: secateur.PruneResult) -> dict[str, bytes]:
    tensors = frontends.open(result.model).tensors()
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def told(result: secateur.PruneResult) -> Any:
    """A report's layers and what was trained; not the seconds."""
    report = result.report
    notes = [note for note in report.notes if "work folder" not in note]
    return report.layers, notes, report.evaluation, report.calibration


CASES: dict[str, dict[str, Any]] = {
    "zeros": {"sparsity": 0.7, "recipe": recipe()},
    "no training": {"sparsity": 0.7, "recipe": recipe(reconstruction=None)},
    "the paper's": {
        "sparsity": 0.6,
        "recipe": recipe(inputs="dense", schedule=(0.0,), method=AdamCalibration(iterations=1)),
    },
    "channels": {
        "max_macs": 0.6,
        "recipe": recipe(pattern=Channels(), schedule=(0.0,), method=LeastSquares()),
    },
    "a search": {
        "max_drop": 20.0,
        "evaluation": JUDGED,
        "recipe": recipe(reconstruction=None, schedule=(0.0,)),
    },
}
VISITS = {
    "channels": (1, 4, 7, 9),
    "zeros": (1, 5, 9, 13, 19),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, case):
    options = CASES[case]
    whole = secateur.prune(network(), IMAGES, **options)
    for visit in VISITS.get(case, (2, 6)):
        options = {**CASES[case], "work_dir": tmp_path / str(visit)}
        with pytest.raises(StoppedError):
            secateur.prune(network(), IMAGES, progress=stopping_at(visit), **options)
        resumed = secateur.prune(network(), IMAGES, **options)
        assert held(resumed) == held(whole)
        assert told(resumed) == told(whole)
        assert "work folder" in " ".join(resumed.report.notes)


def test_a_stopped_run_of_a_file_goes_on_to_the_same_bytes(tmp_path):
    pytest.importorskip("onnxruntime")
    model = frontends.open(network()).to_onnx(IMAGES[:2])
    options: dict[str, Any] = {"sparsity": 0.7, "recipe": recipe()}
    whole = secateur.prune(model, IMAGES, **options)
    for visit in (2, 5):
        work = tmp_path / str(visit)
        with pytest.raises(StoppedError):
            secateur.prune(model, IMAGES, work_dir=work, progress=stopping_at(visit), **options)
        resumed = secateur.prune(model, IMAGES, work_dir=work, **options)
        assert resumed.model.SerializeToString() == whole.model.SerializeToString()


def test_what_is_finished_is_not_done_again(tmp_path, monkeypatch):
    options: dict[str, Any] = {"sparsity": 0.7, "recipe": recipe(), "work_dir": tmp_path / "run"}
    whole = secateur.prune(network(), IMAGES, **options)
    assert "work folder" not in " ".join(whole.report.notes)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("it was done before")

    monkeypatch.setattr("secateur.pruning.layer_fit.LayerFit.__init__", refused)
    monkeypatch.setattr(BlockReconstruction, "train", refused)
    monkeypatch.setattr("secateur.pruning.streams.DualStream.__init__", refused)
    assert held(secateur.prune(network(), IMAGES, **options)) == held(whole)


class Attentive(nn.Module):
    """An attention layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.parts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.first, self.wide, self.narrow = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        q, k, v = (part(x).unflatten(-1, (2, 8)).transpose(1, 2) for part in self.parts[:3])
        met = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.parts[3](met.transpose(1, 2).flatten(2))
        return x + self.narrow(self.wide(x).relu())


def test_a_stopped_run_goes_on_where_queries_and_keys_get_smaller(tmp_path):
    net, tokens = Attentive(), torch.randn(40, 6, 16, generator=torch.Generator().manual_seed(3))
    smaller = recipe(pattern=Channels(), schedule=(0.0,), reconstruction=None)
    options: dict[str, Any] = {"max_macs": 0.6, "recipe": smaller}
    whole = secateur.prune(net, tokens, **options)
    for visit in (3, 6, 9):
        work = tmp_path / str(visit)
        with pytest.raises(StoppedError):
            secateur.prune(net, tokens, work_dir=work, progress=stopping_at(visit), **options)
        resumed = secateur.prune(net, tokens, work_dir=work, **options)
        assert held(resumed) == held(whole)
        entries = work.glob("entries/couplings-*/*.safetensors")
        assert any('mixed\\": true' in of.read_bytes().decode(errors="ignore") for of in entries)


def test_measured_times_come_back_as_they_were(tmp_path):
    row = LayerRow(
        shape=LayerShape(kind="linear", inputs=8, outputs=8, size=()),
        ops=("a",),
        inputs=(4, 8),
        outputs=(4, 8),
        seconds=((1e-6, 2e-6), (2e-6, 3e-6)),
        low=((1e-6, 2e-6), (2e-6, 3e-6)),
        high=((1e-6, 2e-6), (2e-6, 3e-6)),
        rounds=9,
    )
    times = LayerTimes(
        runtime="torch",
        threads=1,
        step=8,
        rows=(row,),
        rounds=9,
        asked=1.0,
        elapsed=1.0,
        unmeasured={"b": "none"},
    )
    ratio = Ratio(ratio=0.5, low=0.4, high=0.6, seconds=1e-3, rounds=9)
    with opened(tmp_path) as journal:
        journal.check({})
        journal.chapter("layer times").put(0, times)
        journal.chapter("whole times").put(0, ratio)
    with opened(tmp_path) as journal:
        entries = [
            journal.chapter("layer times").get(0, LayerTimes),
            journal.chapter("whole times").get(0, Ratio),
        ]
    assert [entry and entry.record for entry in entries] == [times, ratio]


@pytest.mark.parametrize("write", [1, 7, 16])
def test_a_run_stopped_while_it_writes_goes_on_to_the_same_bytes(tmp_path, monkeypatch, write):
    options: dict[str, Any] = {"sparsity": 0.7, "recipe": recipe()}
    whole = secateur.prune(network(), IMAGES, **options)
    count, flush = 0, os.fsync

    def stop(handle: int) -> None:
        nonlocal count
        count += 1
        if count == write:
            raise KeyboardInterrupt
        flush(handle)

    options["work_dir"] = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(journals.os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            secateur.prune(network(), IMAGES, **options)
    assert held(secateur.prune(network(), IMAGES, **options)) == held(whole)


@pytest.mark.parametrize("damage", ["cut", "turned", "empty"])
def test_a_damaged_entry_is_done_again(tmp_path, damage):
    options: dict[str, Any] = {"sparsity": 0.7, "recipe": recipe(), "work_dir": tmp_path / "run"}
    whole = secateur.prune(network(), IMAGES, **options)
    entries = sorted((tmp_path / "run/entries").rglob("*.safetensors"))
    path = next(path for path in entries if "walk-001" in str(path) and path.stem == "0001")
    content = path.read_bytes()
    middle = len(content) - 9
    turned = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"cut": content[:-40], "turned": turned, "empty": b""}[damage])
    with pytest.warns(SecateurWarning, match="is damaged"):
        resumed = secateur.prune(network(), IMAGES, **options)
    assert held(resumed) == held(whole)
    assert held(secateur.prune(network(), IMAGES, **options)) == held(whole)  # no warning now


def changed(name: str) -> tuple[nn.Module, torch.Tensor, dict[str, Any]]:
    """A call, with something else than in the run before."""
    net, images = network(), IMAGES
    options: dict[str, Any] = {"sparsity": 0.5, "method": "magnitude", "allocation": "uniform"}
    if name == "parameters":
        net[0].weight[0, 0, 0, 0] += 1e-3
    elif name == "operations":
        net[2] = nn.GELU()
    elif name == "what the network gives":
        net[2] = nn.Hardtanh(0, 0.1)
        net[5] = nn.Hardtanh(0, 0.2)
    elif name == "images":
        images = IMAGES.flip(0)
    elif name == "target.value":
        options["sparsity"] = 0.6
    elif name == "seed":
        options["seed"] = 1
    elif name == "exclude":
        options["exclude"] = "3"
    return net, images, options


@pytest.mark.parametrize(
    "name",
    ["parameters", "operations", "images", "target.value", "seed", "exclude"],
)
def test_another_run_is_refused_with_what_differs(tmp_path, name):
    first, images, options = changed("")
    secateur.prune(first, images, **options, work_dir=tmp_path)
    net, images, options = changed(name)
    with pytest.raises(OptionError, match=rf"holds another run .*\b{name}") as error:
        secateur.prune(net, images, **options, work_dir=tmp_path)
    assert "choose another work_dir" in str(error.value)


def test_a_search_depends_on_the_data_to_judge_by_and_nothing_else_does(tmp_path):
    net, images, options = changed("")
    secateur.prune(net, images, **options, work_dir=tmp_path / "zeros")
    judged = secateur.prune(
        net, images, **options, evaluation=JUDGED[:8], work_dir=tmp_path / "zeros"
    )
    assert judged.report.evaluation is not None
    search = {**CASES["a search"], "work_dir": tmp_path / "search"}
    secateur.prune(net, images, **search)
    with pytest.raises(OptionError, match="data to judge by: not the same"):
        secateur.prune(net, images, **{**search, "evaluation": JUDGED[:200]})


def test_prune_takes_what_plan_has_measured(tmp_path):
    options: dict[str, Any] = {"sparsity": 0.7, "recipe": recipe()}
    whole = secateur.prune(network(), IMAGES, **options)
    planned = secateur.plan(network(), IMAGES, **options, work_dir=tmp_path)
    measured = list(tmp_path.rglob("*.safetensors"))
    assert len(measured) == len(planned.layers)
    again = secateur.plan(network(), IMAGES, **options, work_dir=tmp_path)
    assert again.layers == planned.layers
    assert "work folder" in " ".join(again.notes)
    pruned = secateur.prune(network(), IMAGES, **options, work_dir=tmp_path)
    assert held(pruned) == held(whole)
    assert f"{len(measured)} steps of this run" in " ".join(pruned.report.notes)


def test_a_stopped_sweep_goes_on_to_the_same_reports(tmp_path):
    sparsities = [0.5, 0.7]
    whole = secateur.sweep(network(), IMAGES, sparsities=sparsities, recipe=recipe())
    for visit in (2, 6, 14):
        options: dict[str, Any] = {"recipe": recipe(), "work_dir": tmp_path / str(visit)}
        with pytest.raises(StoppedError):
            secateur.sweep(
                network(), IMAGES, sparsities=sparsities, progress=stopping_at(visit), **options
            )
        resumed = secateur.sweep(network(), IMAGES, sparsities=sparsities, **options)
        assert [of.layers for of in resumed.reports] == [of.layers for of in whole.reports]
        assert "work folder" in " ".join(resumed.reports[0].notes)
        with pytest.raises(OptionError, match=r"sparsities was 0\.5, 0\.7, is 0\.5, 0\.6"):
            secateur.sweep(network(), IMAGES, sparsities=[0.5, 0.6], **options)


def test_other_threads_are_refused(tmp_path, monkeypatch):
    net, images, options = changed("")
    secateur.prune(net, images, **options, work_dir=tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(OptionError, match=r"threads of PyTorch was .*, is 77"):
        secateur.prune(net, images, **options, work_dir=tmp_path)


def test_a_folder_with_other_files_is_refused(tmp_path):
    net, images, options = changed("")
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(OptionError, match="holds other files and no journal"):
        secateur.prune(net, images, **options, work_dir=tmp_path)
    with pytest.raises(OptionError, match="is a file, expected a folder"):
        secateur.prune(net, images, **options, work_dir=tmp_path / "holiday.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def stop_early(place: Path, *, entry: bool = False, note: bool = False) -> None:
    """An error once the run has begun."""

    def run() -> None:
        with opened(place) as journal:
            journal.check({})
            chapter = journal.chapter("walk")
            if entry:
                chapter.put(0, journals.Run({}))
            if note:
                (place / "note.txt").touch()
            raise StoppedError

    with pytest.raises(StoppedError):
        run()


def test_a_mistake_before_anything_is_finished_leaves_no_folder(tmp_path):
    net, images, options = changed("")
    made, given = tmp_path / "runs" / "1", tmp_path / "given"
    given.mkdir()
    nan = torch.where(images == images.max(), torch.nan, images)
    for place in (made, given):
        with pytest.raises(secateur.SecateurError):
            secateur.prune(net, nan, **options, work_dir=place)
        with pytest.raises(secateur.SecateurError):
            secateur.prune(net, images, **{**options, "include": "none"}, work_dir=place)
        stop_early(place)
    assert [path.name for path in tmp_path.iterdir()] == ["given"]
    assert sorted(path.name for path in given.iterdir()) == ["entries", "journal.json", "lock"]


def test_a_folder_with_something_in_it_outlasts_a_mistake(tmp_path):
    for name in ("entry", "note"):
        stop_early(tmp_path / name, **{name: True})
        assert (tmp_path / name / "journal.json").exists()


def test_one_process_at_a_time_uses_a_folder_and_a_killed_one_does_not_block_it(tmp_path):
    program = (
        "import sys, time; from secateur.pruning.journal import opened\n"
        "with opened(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OptionError, match="used by another process"), opened(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with opened(tmp_path) as journal:
        assert journal.folder == tmp_path
        with pytest.raises(OptionError, match="used by another process"), opened(tmp_path):
            pass


def test_files_that_a_killed_process_was_writing_are_removed(tmp_path):
    (tmp_path / "journal.json.new").write_text("{")
    with opened(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


def test_an_interruption_tells_how_to_go_on(tmp_path, monkeypatch):
    net, images, options = changed("")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    interruptions.begin()
    with pytest.raises(KeyboardInterrupt) as caught:
        secateur.prune(net, images, **options, work_dir=tmp_path, progress=interrupt)
    assert caught.value.__notes__ == [f"the same call goes on from what is finished in {tmp_path}"]
    told = f"interrupted: the same command goes on from what is finished in {tmp_path}"
    assert interruptions.interruption() == told
    interruptions.begin()


def test_strides_come_back_as_they_were(tmp_path):
    tensors = {
        "rows": torch.randn(3, 4, 2, 2),
        "last": torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last),
        "turned": torch.randn(5, 7).T,
        "repeated": torch.randn(1, 7).expand(5, 7),
        "half": torch.randn(4).half(),
        "none": torch.empty(0, 3),
    }
    with opened(tmp_path) as journal:
        journal.check({"seed": "0"})
        journal.chapter("walk").put(0, journals.Run({}), tensors)
    with opened(tmp_path) as journal:
        entry = journal.chapter("walk").get(0, journals.Run)
        assert journal.chapter("walk").get(0, journals.Run) is None  # the second of its name
    with opened(tmp_path) as journal:
        assert journal.chapter("walk", kept=[1]).get(0, journals.Run) is None  # given other data
    assert entry is not None
    for name, tensor in tensors.items():
        assert torch.equal(entry.tensors[name], tensor), name
        if name != "repeated":
            assert entry.tensors[name].stride() == tensor.stride(), name


def test_without_a_folder_nothing_is_kept(tmp_path):
    with opened(None) as journal:
        chapter = journal.chapter("walk")
        chapter.put(0, journals.Run({}))
        assert chapter.get(0, journals.Run) is None
        journal.check({"seed": "0"})
        assert journal.notes() == []
    assert list(Path(tmp_path).iterdir()) == []
