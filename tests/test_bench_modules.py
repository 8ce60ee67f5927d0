"""Modules measured side by side: floats, INT8 and pruned, at several batch sizes and lengths."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import assert_mistake, invoke
from torch import Tensor, nn

import secateur
from secateur.errors import ModelError, OptionError
from secateur.hardware import bench_modules as module
from secateur.hardware.acceleration import kernels

pytestmark = pytest.mark.skipif(bool(kernels.missing("sparse")), reason="no fbgemm here")


class Encoder(nn.Module):
    """Token numbers and their mask in, a row for each sample out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(10, 16), nn.Linear(16, 16)
        self.lengths: list[tuple[int, ...]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.lengths.append(tuple(input_ids.shape))
        return (self.layer(self.words(input_ids)) * attention_mask[..., None]).mean(1)


@pytest.fixture
def tokens() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 10, (40, 6), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_all_forms_take_turns_at_each_size(tokens: Any) -> None:
    torch.manual_seed(0)
    dense, pruned = Encoder().eval(), Encoder().eval()
    found = module.bench_modules(
        dense, tokens, pruned=pruned, batches=[1, 3], lengths=[4, 8], rounds=10
    )
    sizes = {(of.batch, of.length) for of in found.timings}
    assert sizes == {(1, 4), (1, 8), (3, 4), (3, 8)}
    assert {(3, 8), (1, 4)} <= set(dense.lengths)
    for size in sizes:
        forms = [of.form for of in found.timings if (of.batch, of.length) == size]
        assert forms == [module.FLOAT, module.INT8, module.PRUNED_INT8, module.PRUNED]
    for of in found.timings:
        assert of.low <= of.median <= of.high
        if of.form == module.FLOAT:
            assert of.against_float == 1
        if of.form == module.INT8:
            assert of.against_int8 == 1
    assert "times as fast as dense INT8" in str(found)
    assert found.data()["rounds"] == 10


def test_a_form_that_cannot_be_made_is_noted(tokens: Any, monkeypatch: Any) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise ModelError("no such kernel")

    monkeypatch.setattr(module, "accelerate", refused)
    found = module.bench_modules(Encoder().eval(), tokens, rounds=10)
    assert [of.form for of in found.timings] == [module.FLOAT]
    assert found.notes == ("dense, INT8 was not measured: no such kernel",)
    assert found.timings[0].against_int8 is None


def test_a_compiler_that_fails_is_noted(tokens: Any, monkeypatch: Any) -> None:
    def compiled(_: Any) -> Any:
        def run(**_: Any) -> Any:
            raise RuntimeError("no compiler\nmore")

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    found = module.bench_modules(Encoder().eval(), tokens, rounds=10, compiled=True)
    assert module.COMPILED not in {of.form for of in found.timings}
    assert "torch.compile was not measured: no compiler" in found.notes


def test_mistakes_are_one_sentence(tokens: Any) -> None:
    with pytest.raises(OptionError, match="no mask"):
        module.bench_modules(nn.Linear(4, 4), torch.randn(40, 4), lengths=[8], rounds=10)
    with pytest.raises(
        ModelError, match=r"does not run on the data \(pruned, float32: .*Expected 3D"
    ):
        module.bench_modules(
            nn.Linear(4, 4), torch.randn(40, 4), pruned=nn.Conv2d(3, 4, 1), rounds=10
        )
    with pytest.raises(OptionError, match="rounds is 3"):
        module.bench_modules(Encoder(), tokens, rounds=3)


def test_the_threads_are_as_before(tokens: Any) -> None:
    before = torch.get_num_threads()
    secateur.bench_modules(Encoder().eval(), tokens, threads=1, rounds=10)
    assert torch.get_num_threads() == before


def test_the_command_measures_modules_and_refuses_their_options_for_files(tmp_path: Any) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(16, 16)).eval()\n"
    )
    np.savez(
        tmp_path / "data.npz", images=np.linspace(-1, 1, 640, dtype=np.float32).reshape(40, 16)
    )
    call = ["bench", f"{tmp_path}/net.py:net", "--data", f"{tmp_path}/data.npz", "--rounds", "10"]
    found = invoke(*call, "--batches", "1,2", "--json", str(tmp_path / "found.json"))
    assert "dense, INT8" in found.output
    held = json.loads((tmp_path / "found.json").read_text())
    assert {of["batch"] for of in held["timings"]} == {1, 2}
    assert_mistake(invoke("bench", "a.onnx", "--batches", "1,2"), "for files, expected modules")
