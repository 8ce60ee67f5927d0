"""Accelerated modules give what the float ones give, keep zeros, and are the same when loaded."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

import secateur
from secateur.errors import ModelError, OptionError, OutputError
from secateur.hardware.acceleration import kernels, run
from secateur.hardware.acceleration.choice import fastest
from secateur.hardware.acceleration.kernels import Codes, quantized_weight, zero_blocks
from secateur.hardware.acceleration.layers import Int8Layer, Int8Linear, Integers, SharedInput
from secateur.hardware.acceleration.saved import save_accelerated

pytestmark = [
    pytest.mark.skipif(bool(kernels.missing("sparse")), reason="PyTorch has no fbgemm here"),
    pytest.mark.filterwarnings("ignore:no layer runs the sparse kernel"),
    pytest.mark.filterwarnings("ignore:.*images.*:secateur.SecateurWarning"),
]
SPARSE, DENSE = ["sparse"], ["dense"]


def blocks_zeroed(weight: Tensor, share: float) -> Tensor:
    """A matrix with the smallest blocks of 1 x 4 zeroed."""
    blocks = weight.detach().reshape(len(weight), -1, 4)
    sizes = blocks.square().sum(2, keepdim=True)
    least = sizes.flatten().kthvalue(int(sizes.numel() * share)).values
    return (blocks * (sizes > least)).reshape(weight.shape)


class Attention(nn.Module):
    """Three layers that read one value, and two behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.inner, self.outer = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT
        return self.outer(gelu(self.inner(scores.softmax(-1) @ self.value(x))))


@pytest.fixture
def data() -> Tensor:
    return torch.randn(64, 16, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network() -> Attention:
    torch.manual_seed(0)
    net = Attention().eval()
    for layer in net.children():
        layer.weight.data = blocks_zeroed(layer.weight, 0.7)
    return net


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().square().mean() / other.detach().var())


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_a_kernel_gives_what_its_integers_say(kernel):
    generator = torch.Generator().manual_seed(0)
    matrix, bias = torch.randn(24, 64, generator=generator), torch.randn(24, generator=generator)
    x = 3 * torch.randn(40, 64, generator=generator)
    weight, scale = quantized_weight(blocks_zeroed(matrix, 0.5))
    taken, output = Codes.of(-9.0, 9.0, 127), Codes.of(-90.0, 90.0, 255)
    integers = Integers(weight=weight, scale=scale, bias=bias, output=output)
    shared = SharedInput(taken)
    found = Int8Linear(integers, kernel, shared)(x)
    codes = ((x / taken.scale).round() + taken.zero).clamp(0, 127).double() - taken.zero
    exact = (codes @ weight.double().mT) * taken.scale * scale + bias
    expected = ((exact / output.scale).round() + output.zero).clamp(0, 255) - output.zero
    assert (found / output.scale - expected).abs().max() < 1.01


def test_values_beyond_the_last_code_have_that_one():
    codes = Codes.of(-1.0, 2.0, 127)
    found = codes.quantized(torch.tensor([100.0, -100.0, 0.0]))
    assert found.int_repr().tolist() == [127, 0, codes.zero]
    assert torch.equal(found.dequantize(), codes.rounded(torch.tensor([100.0, -100.0, 0.0])))


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_the_accelerated_module_is_near_the_float_one(network, data, kernel):
    found = secateur.accelerate(network, data, kernels=[kernel])
    with torch.no_grad():
        assert error(found.model(data), network(data)) < 0.005
    assert found.report.count(kernel) == 5
    assert {of.kernel for of in found.report.layers} == {kernel}


def test_zeros_stay_zeros_and_the_module_given_stays_as_it_was(network, data):
    before = copy.deepcopy(network.state_dict())
    model = secateur.accelerate(network, data, kernels=SPARSE).model
    for name, layer in model.named_children():
        zeros = network.get_parameter(f"{name}.weight") == 0
        assert isinstance(layer, Int8Layer)
        assert not layer.weight_int8[zeros].any()
        assert not layer.weight[zeros].any()
        assert zero_blocks(layer.weight) >= 0.69
        assert error(layer.weight, network.get_parameter(f"{name}.weight")) < 1e-3
    assert all(torch.equal(of, before[name]) for name, of in network.state_dict().items())


def test_a_channel_of_large_values_does_not_cost_the_others_their_codes(data):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32)).eval()
    data = data.clone()
    data[..., 3] *= 200
    net[0].weight.data[:, 3] /= 200
    found = secateur.accelerate(net, data, kernels=DENSE)
    assert found.report.layers[0].error is not None
    assert found.report.layers[0].error < 0.003
    plain = Codes.of(float(data.min()), float(data.max()), 127).rounded(data)
    assert error(net(plain), net(data)) > 0.1


def test_readers_of_one_value_quantise_it_once(network, data, monkeypatch):
    model = secateur.accelerate(network, data, kernels=DENSE).model
    assert model.query.shared is model.key.shared is model.value.shared
    assert model.query.shared is not model.inner.shared
    calls, quantized = [], Codes.quantized
    monkeypatch.setattr(Codes, "quantized", lambda *of: calls.append(1) or quantized(*of))
    for mode in (torch.no_grad, torch.inference_mode):
        calls.clear()
        with mode():
            model(data[:2])
        assert len(calls) == 3


def test_a_value_that_was_written_to_is_quantised_anew(network, data):
    model = secateur.accelerate(network, data, kernels=DENSE).model
    x = data[:2].clone()
    with torch.no_grad():
        first = model.query(x)
        x.mul_(0.5)
        assert not torch.equal(model.query(x), first)
        assert torch.equal(model.query(x), model.query(x.clone()))


def test_padding_is_left_out_of_the_ranges():
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.layer(x) * attention_mask[..., None]

    torch.manual_seed(0)
    mask = torch.ones(40, 8, dtype=torch.long)
    mask[:, 5:] = 0
    x = torch.randn(40, 8, 32)
    x[:, 5:] = 1e4
    net = Padded().eval()
    model = secateur.accelerate(net, {"x": x, "attention_mask": mask}, kernels=DENSE).model
    with torch.no_grad():
        assert error(model(x, mask), net(x, mask)) < 0.005


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_an_input_without_samples_gives_a_row(kernel):
    """As in floats: one vector for linear layers, one image for convolutions."""
    linear, point = nn.Sequential(nn.Linear(32, 16)), nn.Sequential(nn.Conv2d(8, 16, 1))
    for net, data in (
        (linear.eval(), torch.randn(32, 32)),
        (point.eval(), torch.randn(32, 8, 4, 4)),
    ):
        fast = secateur.accelerate(net, data, kernels=kernel).model
        assert torch.equal(fast(data[0]), fast(data[:1])[0])


def test_one_by_one_convolutions_run_and_others_say_why_not():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 1, stride=2), nn.ReLU(), nn.Conv2d(32, 8, 1)
    ).eval()
    images = torch.randn(40, 3, 12, 12)
    found = secateur.accelerate(net, images, kernels=DENSE)
    with torch.no_grad():
        for given in (images, images.to(memory_format=torch.channels_last), images[0]):
            assert error(found.model(given), net(given)) < 0.01
    kernel = {of.name: of.kernel for of in found.report.layers}
    assert kernel == {"0": "float", "1": "dense", "3": "dense"}
    assert "3x3 convolution" in found.report.layers[0].reason
    assert found.model[1].weight.shape == (32, 16, 1, 1)
    rows = {of.name: of.rows for of in found.report.layers}
    assert rows["1"] == 25


class Conv1D(nn.Module):
    """As Transformers has it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) / 8)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        found = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return found.view(*x.shape[:-1], self.nf)


def test_conv1d_of_transformers_is_a_linear_layer(data):
    torch.manual_seed(0)
    net = nn.Sequential(Conv1D(48, 32)).eval()
    found = secateur.accelerate(net, data, kernels=DENSE)
    assert isinstance(found.model[0], Int8Layer)
    assert found.model[0].weight.shape == (32, 48)
    with torch.no_grad():
        assert error(found.model(data), net(data)) < 0.005


class Odd(nn.Module):
    """Layers whose weights are used in other ways than by calling them."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(32, 32)
        self.tied, self.twin = nn.Linear(32, 32), nn.Linear(32, 32)
        self.twin.weight = self.tied.weight
        self.read, self.both, self.idle = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twin(self.tied(self.plain(x)))
        x = linear(x, self.read.weight) + self.both(x)
        return x @ self.both.weight


def test_weights_that_are_shared_or_used_otherwise_are_left_alone(data):
    torch.manual_seed(0)
    net = Odd().eval()
    found = secateur.accelerate(net, data, kernels=DENSE)
    reasons = {of.name: of.reason for of in found.report.layers}
    assert reasons["plain"] == ""
    assert "shared" in reasons["tied"]
    assert "shared" in reasons["twin"]
    assert reasons["read"] == "its weight is used, but the layer is never called"
    assert "matmul" in reasons["both"]
    assert reasons["idle"] == "it never runs"
    with torch.no_grad():
        assert error(found.model(data), net(data)) < 0.005


def test_transformer_layers_of_pytorch_call_their_layers(data):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    found = secateur.accelerate(net, data, kernels=DENSE)
    assert found.report.count("dense") == 4
    with torch.inference_mode():
        assert error(found.model(data), net(data)) < 0.005


def test_layers_can_be_excluded_and_misspelt_names_are_refused(network, data):
    found = secateur.accelerate(network, data, kernels=DENSE, exclude="*er")
    reasons = {of.name: of.reason for of in found.report.layers}
    assert reasons["inner"] == reasons["outer"] == "excluded by the call"
    assert type(found.model.inner) is nn.Linear
    with pytest.raises(OptionError, match="matches no linear layer"):
        secateur.accelerate(network, data, exclude="querry")


def test_the_fastest_form_is_chosen_and_floats_unless_others_are_clearly_faster():
    every = ("sparse", "dense", "float")
    assert fastest({"sparse": 1.0, "dense": 2.0, "float": 3.0}, every) == "sparse"
    assert fastest({"sparse": 1.0, "dense": 0.5, "float": 3.0}, every) == "dense"
    assert fastest({"sparse": 0.99, "dense": 2.0, "float": 1.0}, every) == "float"
    assert fastest({"sparse": 1.0, "dense": 0.5, "float": 0.1}, ("sparse",)) == "sparse"


FRESH = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import secateur
from test_acceleration import Attention
data = torch.load(sys.argv[2] + "/data.pt")
whole = torch.load(sys.argv[2] + "/whole.pt", weights_only=False)
loaded = secateur.load_accelerated(Attention(), sys.argv[2] + "/model.safetensors")
with torch.no_grad():
    torch.save([whole(data), loaded(data)], sys.argv[2] + "/found.pt")
"""


def test_a_fresh_process_gives_the_same(network, data, tmp_path):
    found = secateur.accelerate(network, data, kernels=SPARSE)
    torch.save(found.model, tmp_path / "whole.pt")
    torch.save(data[:4], tmp_path / "data.pt")
    found.save(tmp_path / "model.safetensors")
    folder = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", FRESH, folder, str(tmp_path)], check=True)
    with torch.no_grad():
        expected = found.model(data[:4])
    for output in torch.load(tmp_path / "found.pt"):
        assert torch.equal(output, expected)
    with pytest.raises(OutputError, match="exists"):
        found.save(tmp_path / "model.safetensors")


def test_copies_and_state_dicts_give_the_same(network, data):
    model = secateur.accelerate(network, data, kernels=SPARSE).model
    twin = copy.deepcopy(model)
    assert twin.query.shared is twin.key.shared
    with torch.no_grad():
        assert torch.equal(twin(data), model(data))
        twin.inner.weight_int8.zero_()
        assert torch.equal(twin(data), model(data))  # packed already
        twin.load_state_dict(twin.state_dict())
        assert not torch.equal(twin(data), model(data))
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin.half().float()(data), model(data))


def test_a_module_whose_layers_stay_in_floats_is_saved_and_said_to_be_as_it_was(
    network, data, tmp_path
):
    found = secateur.accelerate(network, data, kernels=["float"])
    assert "times as fast" not in found.report.result
    assert "0 sparse INT8, 0 dense INT8, 5 float" in found.report.result
    found.save(tmp_path / "model.safetensors")
    loaded = secateur.load_accelerated(Attention(), tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(data), network(data))


@pytest.mark.parametrize("kernels", ["dense", {"dense"}])
def test_one_kernel_may_be_given_alone(kernels):
    net = nn.Sequential(nn.Linear(32, 32)).eval()
    found = secateur.accelerate(net, torch.randn(32, 32), kernels=kernels)
    assert found.report.count("dense") == 1


def test_weights_of_an_accelerated_module_say_how_they_are_loaded(network, data, tmp_path):
    secateur.accelerate(network, data, kernels=DENSE).save(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="load_accelerated"):
        secateur.load(network, tmp_path / "model.safetensors")


def test_a_file_of_another_network_is_refused(network, data, tmp_path):
    path = tmp_path / "model.safetensors"
    secateur.accelerate(network, data, kernels=DENSE).save(path)
    for other in (nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32))):
        with pytest.raises(ModelError, match="expected the file of this network"):
            secateur.load_accelerated(other, path)
    with pytest.raises(ModelError, match="no such file"):
        secateur.load_accelerated(network, tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(ModelError, match="cannot be read"):
        secateur.load_accelerated(network, tmp_path / "text.safetensors")


def test_a_missing_kernel_is_one_sentence(network, data, monkeypatch):
    monkeypatch.setattr(kernels, "KERNELS", {
        "sparse": kernels.Kernel(engines=("none",), pack=kernels._pack_sparse,
                                 run=kernels._run_sparse),
    })  # fmt: skip
    with pytest.raises(ModelError, match="this PyTorch has no none engine"):
        secateur.accelerate(network, data, kernels=SPARSE)


def test_a_file_is_refused_before_it_is_pruned():
    from onnx_models import as_onnx, network

    seen = []
    given = {
        "runtime": "torch-int8-sparse",
        "sparsity": 0.5,
        "progress": lambda *of: seen.append(of),
    }
    images = torch.randn(40, 3, 8, 8)
    for call in (secateur.prune, secateur.plan):
        with pytest.raises(ModelError, match=r"is an .onnx file.*expected a torch.nn.Module"):
            call(as_onnx(network()), images, **given)
    with pytest.raises(ModelError, match=r"is an .onnx file, expected a torch.nn.Module"):
        secateur.accelerate(as_onnx(network()), images)
    assert not seen


def test_what_has_no_such_layers_is_refused(data):
    with pytest.raises(ModelError, match="no layer can run an INT8 kernel"):
        secateur.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(32, 3, 8, 8))


def test_the_report_can_be_saved_and_told(network, data, tmp_path):
    report = secateur.accelerate(network, data, kernels=SPARSE, batch=4).report
    report.save(tmp_path / "acceleration.json")
    assert secateur.AccelerationReport.load(tmp_path / "acceleration.json") == report
    assert json.loads((tmp_path / "acceleration.json").read_text())["batch"] == 4
    assert report.layers[0].rows == 64
    assert "5 sparse INT8" in str(report)
    assert "relative error" in str(report)


CUDA_MISSING = not torch.cuda.is_available()


@pytest.mark.skipif(not CUDA_MISSING, reason="there is a GPU")
def test_without_a_gpu_2_4_layers_are_refused(network, data, tmp_path):
    with pytest.raises(ModelError, match=r"torch-cuda-2:4 cannot run here: no CUDA GPU"):
        secateur.accelerate(network, data, runtime="torch-cuda-2:4")
    fast = secateur.accelerate(network, data, kernels=DENSE)
    save_accelerated(fast.model, tmp_path / "x.safetensors", runtime="torch-cuda-2:4")
    with pytest.raises(ModelError, match=r"is for torch-cuda-2:4, which cannot run here"):
        secateur.load_accelerated(network, tmp_path / "x.safetensors")


def test_options_of_gpus_are_refused_on_cpus(network, data):
    with pytest.raises(OptionError, match="got cuda_graph with runtime='torch-int8-sparse'"):
        secateur.accelerate(network, data, cuda_graph=True)
    with pytest.raises(OptionError, match="expected 'sparse' or 'dense': floats are the dense"):
        secateur.accelerate(network, data, runtime="torch-cuda-2:4", kernels="float")


def test_the_report_of_a_gpu_tells_half_precision_apart(network, data):
    report = secateur.accelerate(network, data, kernels=DENSE).report
    times = {"float": 8.0, "half": 4.0, "accelerated": 2.0}
    said = replace(report, runtime="torch-cuda-2:4", milliseconds=times)
    assert said.result.startswith(
        "2.00 times as fast as dense in float16 (2 instead of 4 ms for 1 sample), 4.00 times as "
        "fast as in float32 (8 ms)"
    )
    assert "5 dense because that is faster" in said.result
    assert "in float16, relative" in said.table().note


@pytest.mark.parametrize("call", ["prune", "plan", "inspect", "accelerate"])
def test_an_accelerated_module_is_refused_with_what_to_do(network, data, call):
    fast = secateur.accelerate(network, data, kernels=DENSE).model
    more = {"prune": {"sparsity": 0.5}, "plan": {"sparsity": 0.5}}.get(call, {})
    with pytest.raises(ModelError, match=r"accelerated .*: prune first, then accelerate"):
        getattr(secateur, call)(fast, (16, 32) if call == "inspect" else data, **more)


def test_floats_are_the_dense_kernel_on_a_gpu(monkeypatch):
    monkeypatch.setattr(run.semi_structured, "missing", lambda: "")
    asked = run._check("torch-cuda-2:4", ("float", "sparse"), cuda_graph=True)
    assert asked == ("sparse", "dense")
