"""What `prune` returns writes its files from Python as the command does."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import sys
import warnings

import onnx
import pytest
import torch
from onnx_models import as_onnx, network
from safetensors.torch import load_file
from test_cli import invoke
from torch import nn

import secateur
from secateur import (
    DataError,
    IncompleteError,
    ModelError,
    OptionError,
    OutputError,
    Report,
    SecateurWarning,
)
from secateur.data.sources import open_images
from secateur.export.files import ONNX_WRITERS
from secateur.export.int8 import Quantized

IMAGES = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(0))
HOW = {"sparsity": 0.5, "method": "magnitude", "allocation": "uniform", "progress": False}


def small() -> nn.Module:
    torch.manual_seed(0)
    head = [nn.Flatten(), nn.Linear(8 * 8 * 8, 5)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), *head).eval()


@pytest.fixture(scope="module")
def pruned() -> secateur.PruneResult:
    return secateur.prune(small(), IMAGES, **HOW)


def test_a_folder_has_the_network_and_its_report(pruned, tmp_path) -> None:
    written = pruned.save(tmp_path / "out")
    assert [str(path) for path in written] == ["model.safetensors", "report.html", "report.json"]
    for path, size in written.items():
        assert (tmp_path / "out" / path).stat().st_size == size
    state = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in pruned.model.state_dict().items():
        assert torch.equal(state[name], tensor)
    report = Report.load(tmp_path / "out" / "report.json")
    assert report.exports["model.safetensors"]["zeros"] == sum(of.zeros for of in report.layers)


def test_nothing_is_replaced_unasked(pruned, tmp_path) -> None:
    out = tmp_path / "out"
    pruned.save(out)
    before = (out / "model.safetensors").read_bytes()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="not empty"):
        pruned.save(out)
    pruned.save(out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert (out / "mine.txt").read_text() == "kept"


def test_int8_has_to_be_asked_of_prune(pruned, tmp_path) -> None:
    with pytest.raises(OptionError, match="quantize"):
        pruned.save(tmp_path / "out", int8=True)
    assert list(tmp_path.iterdir()) == []


def test_few_images_are_kept_for_the_checks(pruned) -> None:
    assert torch.equal(pruned.images.only(), IMAGES[: len(pruned.images)])
    assert pruned.images.only().untyped_storage().nbytes() < IMAGES.nbytes


def test_an_onnx_file_stays_one(tmp_path) -> None:
    onnx.save(as_onnx(network(), size=12), tmp_path / "net.onnx")
    result = secateur.prune(tmp_path / "net.onnx", IMAGES, **HOW)
    written = result.save(tmp_path / "out", onnx=True)
    assert [str(path) for path in written] == ["model.onnx", "report.html", "report.json"]
    assert result.report.exports["model.onnx"]["zeros"] > 0


def test_an_exported_program_stays_one(tmp_path) -> None:
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(small(), (IMAGES[:2],), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "net.pt2")
    result = secateur.prune(tmp_path / "net.pt2", IMAGES, **HOW)
    written = result.save(tmp_path / "out")
    assert "model.pt2" in map(str, written)
    again = torch.export.load(tmp_path / "out" / "model.pt2").module()
    torch.testing.assert_close(again(IMAGES), result.model(IMAGES))


def test_the_command_writes_what_save_writes(tmp_path) -> None:
    (tmp_path / "save_net.py").write_text(
        "import torch\nfrom torch import nn\nfrom test_save import IMAGES, small\n"
        "def images():\n    return IMAGES\n"
    )
    model, data = f"{tmp_path / 'save_net.py'}:small", f"{tmp_path / 'save_net.py'}:images"
    call = ["prune", model, "--data", data, "--sparsity", 0.5, "--method", "magnitude"]
    done = invoke(*call, "--allocation", "uniform", "--onnx", "-o", tmp_path / "cli")
    assert done.exit_code == 0, done.output
    secateur.prune(small(), IMAGES, **HOW).save(tmp_path / "python", onnx=True)
    for name in ("model.safetensors", "model.onnx"):
        python, command = ((tmp_path / of / name).read_bytes() for of in ("python", "cli"))
        assert python == command


def refuses(*_, **__):
    raise ModelError("not this one")


def test_other_formats_that_fail_leave_the_rest(pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(ONNX_WRITERS, ".safetensors", refuses)
    with pytest.raises(IncompleteError, match=r"model\.onnx was not written: not this one") as told:
        pruned.save(tmp_path / "out", onnx=True)
    names = ["model.safetensors", "report.html", "report.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert sorted(map(str, told.value.written)) == names
    pruned.report.warnings.clear()


def test_the_networks_own_file_that_fails_leaves_nothing(pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("secateur.result.save_safetensors", refuses)
    with pytest.raises(ModelError, match="not this one"):
        pruned.save(tmp_path / "out", onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_remarks_about_a_file_are_made_once(pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("secateur.result.differs", lambda check: True)
    before = list(pruned.report.warnings)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        monkeypatch.setitem(
            ONNX_WRITERS,
            ".safetensors",
            lambda model, path, *_, **__: {
                "bytes": path.write_bytes(b""),
                "largest_difference": 1.0,
            },
        )
        for name in ("one", "two"):
            pruned.save(tmp_path / name, onnx=True)
    (added,) = [of for of in pruned.report.warnings if of not in before]
    assert added.startswith("model.onnx differs from the network's outputs")


WRITING = (
    os.path.join("secateur", "result.py"),
    os.path.join("support", "files.py"),
    os.path.join("support", "hidden_folders.py"),
    os.path.join("support", "interruptions.py"),
)


@pytest.fixture
def interrupt_at():
    """Sends the signal of Ctrl-C at the nth function call of the code that writes results."""

    def begin(number: int) -> None:
        calls = itertools.count()

        def profile(frame, event, _):
            code = frame.f_code
            if event != "call" or not code.co_filename.endswith(WRITING):
                return
            if code.co_name == "<genexpr>":  # Python drops what is raised while one is closed
                return
            if next(calls) == number:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

        sys.setprofile(profile)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # may be ignored here
    yield begin
    sys.setprofile(None)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("existing", [False, True])
def test_an_interruption_at_any_call_leaves_all_files_or_none(
    pruned, tmp_path, monkeypatch, interrupt_at, existing
) -> None:
    """Files are looked for and hidden folders too, until a call number that is never reached."""
    monkeypatch.setattr("secateur.result.save_page", lambda _, path: path.write_bytes(b"page"))
    names = ["model.safetensors", "report.html", "report.json"]
    interrupted = {"none": 0, "all": 0}
    for number in itertools.count():
        top = tmp_path / str(number)
        out = top / "above" / "out"
        if existing:
            out.mkdir(parents=True)
        interrupt_at(number)
        with contextlib.suppress(KeyboardInterrupt):
            pruned.save(out)
            break
        left = sorted(path for path in top.rglob("*") if path not in (top / "above", out))
        assert left in ([], [out / name for name in names]), f"at call {number}"
        assert left or top.exists() == existing
        interrupted["all" if left else "none"] += 1
    assert interrupted["none"] > 50  # most calls are before the files get their names
    assert interrupted["all"] > 0


def test_a_report_tells_of_the_files_beside_it_only(pruned, tmp_path, monkeypatch) -> None:
    pruned.save(tmp_path / "first", onnx=True)
    with monkeypatch.context() as patch:
        patch.setitem(ONNX_WRITERS, ".safetensors", refuses)
        with pytest.raises(IncompleteError):
            pruned.save(tmp_path / "second", onnx=True)
    pruned.save(tmp_path / "third")
    names = {
        place: sorted(Report.load(tmp_path / place / "report.json").exports)
        for place in ("first", "second", "third")
    }
    own = "model.safetensors"
    assert names == {"first": ["model.onnx", own], "second": [own], "third": [own]}
    assert not any("model.onnx" in warning for warning in pruned.report.warnings)


def test_what_becomes_of_the_callers_images_changes_no_file(monkeypatch) -> None:
    for name in ("check_kind", "rehearse"):
        monkeypatch.setattr(f"secateur.api.{name}", lambda *_, **__: None)
    monkeypatch.setattr("secateur.low_precision.in_int8", lambda *_: Quantized(model=None))
    images = IMAGES.clone()
    result = secateur.prune(small(), images, quantize="int8", **HOW)
    images.zero_()
    assert torch.equal(result.images.only(), IMAGES)


def test_a_users_remark_that_begins_like_one_of_a_file_stays(pruned, tmp_path) -> None:
    pruned.report.notes.append("model.onnx is what we ship")
    for name in ("one", "two"):
        pruned.save(tmp_path / name)
    assert pruned.report.notes.pop() == "model.onnx is what we ship"


def test_other_formats_of_an_earlier_pruning_are_removed_and_nothing_else(pruned, tmp_path) -> None:
    out = tmp_path / "out"
    pruned.save(out, onnx=True)
    (out / "model.onnx.bak").write_text("mine")
    (out / "mine.txt").write_text("mine")
    with pytest.warns(SecateurWarning, match=r"model\.onnx was removed: an earlier pruning wrote"):
        pruned.save(out, overwrite=True)
    names = ["mine.txt", "model.onnx.bak", "model.safetensors", "report.html", "report.json"]
    assert sorted(path.name for path in out.iterdir()) == names


@pytest.mark.parametrize("listed", [True, False])
def test_files_that_no_report_lists_are_told_of_and_stay(listed, pruned, tmp_path) -> None:
    out = tmp_path / "out"
    pruned.save(out, onnx=listed)
    (out / "model.onnx").write_text("another file of that name")
    (out / "model-int8.onnx").write_text("mine")
    with pytest.warns(SecateurWarning, match="was there before and is not of the network") as told:
        pruned.save(out, overwrite=True)
    assert len(told) == 2
    assert (out / "model.onnx").read_text() == "another file of that name"
    assert (out / "model-int8.onnx").read_text() == "mine"


def test_a_report_cannot_have_files_elsewhere_removed(pruned, tmp_path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine.onnx"
    mine.write_text("mine")
    pruned.save(out)
    text = (out / "report.json").read_text()
    (out / "report.json").write_text(text.replace('"model.safetensors": {', '"../mine.onnx": {'))
    pruned.save(out, overwrite=True)
    assert mine.read_text() == "mine"


def test_a_result_can_be_pickled_with_the_evaluation_images_it_holds(tmp_path) -> None:
    labels = torch.arange(len(IMAGES)) % 5
    result = secateur.prune(small(), IMAGES, evaluation=(IMAGES.flip(2), labels), **HOW)
    again = pickle.loads(pickle.dumps(result))
    assert again.report == result.report
    assert again.evaluation_set.evaluate(again.model) == result.report.evaluation["pruned"]
    assert again.save(tmp_path / "out").keys() == result.save(tmp_path / "other").keys()


def test_images_that_are_read_at_each_pass_are_in_no_pickle() -> None:
    stream = open_images([IMAGES])
    with pytest.raises(DataError, match="read at each pass"):
        pickle.dumps(stream)
    kept = list(stream.batches())
    again = pickle.loads(pickle.dumps(stream))
    assert torch.equal(next(again.batches()).samples.only(), kept[0].samples.only())
