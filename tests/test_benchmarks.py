"""The benchmarks keep up with the package: they can be imported, and time a forward pass."""

import importlib
from pathlib import Path

import pytest
import torch
from problems import problem

import secateur

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
    assert sizes == [cost.batch_of(images), 10 - cost.batch_of(images)]


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


def test_the_table_of_transformers_says_what_kept_one_from_being_pruned(tmp_path: Path) -> None:
    table, tables = importlib.import_module("results_table"), importlib.import_module("tables")
    row = {
        **dict.fromkeys(table.MACHINE, "x"),
        "network": "BertModel",
        "prunable": "0.916",
        "reasons": "1x weight also used by embedding.default",
        "zeros": "0.500",
        "zeros_result": "same",
        "macs_left": "0.684",
        "kind": "traced program",
        "channels_result": "same",
    }
    stuck = row | {"network": "other", "macs_left": "", "channels_result": "cannot", "kind": ""}
    odd = row | {"network": "odd", "zeros_result": "other outputs"}
    table.write_rows(tmp_path / "transformer_calls.csv", [*row], [row, stuck, odd])
    shown = tables.transformer_calls(tmp_path)
    why = "weight also used by embedding.default"
    assert f"| BertModel | 91.6% | 50% | 68% | traced program | {why} |" in shown
    assert f"| other | 91.6% | 50% | cannot |  | {why} |" in shown
    assert "| odd | 91.6% | 50%, other outputs | 68% |" in shown
    assert "both networks of 1 give" in shown


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


def test_tables_of_sentences_show_what_was_measured(tmp_path: Path) -> None:
    table, tables = importlib.import_module("results_table"), importlib.import_module("tables")
    sentences = importlib.import_module("sentences")
    row = {
        **dict.fromkeys(sentences.COLUMNS, ""),
        **dict.fromkeys(table.MACHINE, "x"),
        "method": "default",
        "target": "sparsity",
        "value": "0.5",
        "file": "module",
        "sentences": "400",
        "tokens": "32",
        "dense_spearman": "0.8672",
        "ratio": "20.1",
    }
    own = [row | {"spearman": found} for found in ("0.8680", "0.8670", "0.8660")]
    harder = row | {"value": "0.8", "spearman": "0.8472", "ratio": "80"}
    wanda = row | {"method": "wanda", "spearman": "0.8572", "ratio": "5"}
    file = row | {"file": "onnx", "spearman": "0.8670", "masks_equal": "0.998765"}
    narrow = row | {"target": "max_macs", "value": "0.7", "macs_fraction": "0.699"}
    narrow |= {"spearman": "0.8600", "latency_low": "0.71", "latency": "0.72"}
    rows = [*own, harder, wanda, file, narrow | {"latency_high": "0.75"}]
    table.write_rows(tmp_path / "sentences.csv", sentences.COLUMNS, rows)
    shown = tables.sentences(tmp_path)
    first = "| Secateur, default | 0.8670 ± 0.0010 (3), -0.0002 | 0.8472, -0.0200 | 20, 80 |"
    assert first in shown.splitlines()
    assert "| Wanda | 0.8572, -0.0100 | - | 5, - |" in shown.splitlines()
    assert "99.88% as an ONNX file at 50%" in shown
    narrower = tables.sentence_channels(tmp_path)
    assert "| 70% | 0.8600, -0.0072 | 0.72 (0.71 to 0.75) | 20 |" in narrower.splitlines()


def test_spearman_ranks_equal_values_alike() -> None:
    encoder = importlib.import_module("sentence_encoder")
    one, other = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([3.0, 10.0, 4.0, 40.0])
    ranks = torch.tensor([[0.0, 1.5, 1.5, 3.0], [0.0, 2.0, 1.0, 3.0]])
    assert encoder.spearman(one, other) == pytest.approx(float(torch.corrcoef(ranks)[0, 1]))
    assert encoder.spearman(one, one.exp()) == pytest.approx(1.0)


def test_sparsegpt_removes_one_weight_as_the_optimal_brain_surgeon_does() -> None:
    rivals = importlib.import_module("rival_methods")
    held = problem(rows=1, cols=5, fits_bias=False)
    solution = rivals.SparseGPT(damping=0.0).solve(held, secateur.Unstructured(), 4)
    (gone,) = (~solution.mask[0, 0]).nonzero().flatten().tolist()
    behind = slice(gone + 1, None)  # columns before it stay as they are
    expected = held.weight[0, 0].clone()
    gram, weight = held.gram[0], held.weight[0, 0]
    expected[gone] = 0
    expected[behind] += weight[gone] * torch.linalg.solve(gram[behind, behind], gram[behind, gone])
    torch.testing.assert_close(solution.weight[0, 0], expected)


def test_wanda_prunes_each_row_by_weight_times_norm() -> None:
    rivals = importlib.import_module("rival_methods")
    held = problem(rows=3, cols=6, samples=50)
    solution = rivals.Wanda().solve(held, secateur.Unstructured(), 10)
    assert sorted(solution.mask.sum(-1).flatten().tolist()) == [3, 3, 4]
    square = held.gram[0].diagonal() + held.input_mean[0] ** 2
    scores = held.weight[0].abs() * square.sqrt()
    for row in range(3):
        kept = solution.mask[0, row]
        assert scores[row][kept].min() > scores[row][~kept].max()
    assert torch.equal(solution.weight, held.weight * solution.mask)


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
