"""The benchmarks keep up with the package: they can be imported, and time a forward pass."""

import importlib
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
OPTIONAL = {"plots": "matplotlib", "int8": "nncf", "deployed": "onnx", "third_party": "openvino"}


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


def test_the_table_of_architectures_has_a_line_for_each_network(tmp_path: Path) -> None:
    table, tables = importlib.import_module("results_table"), importlib.import_module("tables")
    row = {
        **dict.fromkeys(table.MACHINE, "x"),
        "network": "U-Net",
        "form": "module",
        "share_free": "0.98",
        "share_left": "0.69",
        "reasons": "2x read by up, which stays; 1x another",
        "largest_difference": "1e-07",
        "kind": "traced program",
        "result": "same",
    }
    file = row | {"form": "onnx", "largest_difference": "3e-07", "kind": ""}
    stuck = row | {"network": "other", "share_left": "", "result": "no channel can leave"}
    stuck["largest_difference"] = ""
    table.write_rows(tmp_path / "architectures.csv", [*row], [row, file, stuck])
    shown = tables.architectures(tmp_path)
    reasons = "read by up, which stays; another"
    assert f"| U-Net | 98% | 69% | 1e-07 p | 3e-07 | {reasons} |" in shown
    assert f"| other | 98% | - | no channel can leave |  | {reasons} |" in shown
    assert "2 networks, 1 also as files" in shown
    assert "at most 3.0e-07" in shown


def test_tables_of_channels_show_what_was_measured(tmp_path: Path) -> None:
    table, tables = importlib.import_module("results_table"), importlib.import_module("tables")
    row = {
        **dict.fromkeys(table.MACHINE, "x"),
        "network": "resnet20",
        "data": "real",
        "max_macs": "0.7",
        "images": "100",
        "half": "quote",
        "test_images": "5000",
        "dense_top1": "92.0",
        "drop": "1.5",
        "drop_error": "0.2",
        "kl": "0.1",
        "ratio": "40",
    }
    own = [
        row | {"recipe": "default", "multiple": "1", "top1": top1}
        for top1 in ("90.5", "90.7", "90.1")
    ]
    rival = row | {"rival": "low-rank", "recovery": "batchnorm", "top1": "87.5"}
    failed = rival | {"rival": "other", "top1": ""}
    elsewhere = rival | {"half": "choose", "top1": "12.3"}
    table.write_rows(tmp_path / "channels.csv", [*own[0]], own)
    table.write_rows(tmp_path / "channel_rivals.csv", [*rival], [rival, failed, elsewhere])
    assert "| 92.0 | 70% | 100 photographs | default | any | 90.5 ± 0.4 (3) |" in tables.channels(
        tmp_path
    )
    lines = tables.channel_rivals(tmp_path).splitlines()
    assert "| Secateur, default | 90.5 ± 0.4 (3) |" in lines
    assert "| low-rank, BatchNorm anew | 87.5 |" in lines
    assert not any("12.3" in line or "| other" in line for line in lines)
    assert tables.channel_latency(tmp_path) == tables.MISSING


def test_the_table_of_deployed_files_has_a_line_for_each(tmp_path: Path) -> None:
    table, tables = importlib.import_module("results_table"), importlib.import_module("tables")
    row = {
        "network": "resnet20", "target": "max_latency", "value": "0.7", "file": "channels, INT8",
        "runtime": "openvino", "version": "1.2", "macs_fraction": "0.655", "test_images": "5000",
        "half": "quote", "top1": "90.04", "drop": "1.96", "drop_error": "0.31",
        "milliseconds": "1.234", "ratio_low": "0.681", "ratio": "0.69", "ratio_high": "0.7",
        "commit": "abc", "secateur": "1", "torch": "2", "cpu": "a CPU",
    }  # fmt: skip
    table.write_rows(tmp_path / "deployed.csv", list(row), [row])
    line = (
        "| ResNet-20, CIFAR-10 | 70% of the time | channels, INT8 | OpenVINO | 66% | 90.0 | "
        "2.0 ± 0.3 | 1.23 | 0.69 (0.68 to 0.70) |"
    )
    found = tables.deployed(tmp_path)
    assert line in found.splitlines()
    assert "OpenVINO 1.2" in found


def test_every_recovery_has_a_name_in_the_table() -> None:
    tables, tools = importlib.import_module("tables"), importlib.import_module("rival_tools")
    assert set(tables.RECOVERY_HEADS) == set(tools.RECOVERIES)
