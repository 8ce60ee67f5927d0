"""Modules as people hold them: weights that no file holds, tied, wrapped, without values yet."""

import threading
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from inputs import trace
from packaging.version import Version
from safetensors.torch import load_file, load_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import secateur
from secateur import DataError, ModelError, OptionError
from secateur.export.files import save_safetensors
from secateur.frontends.torch.modules import copy_module
from secateur.pruning.recipe import RECIPES

QUICK = replace(RECIPES["default"], reconstruction=None, schedule=(0.0,))
OPTIONS = {"recipe": QUICK, "allocation": "uniform", "sparsity": 0.5, "progress": False}
PLACE = "not in the state dict"


class Chain(nn.Module):
    """Linear layers of 8 by 8 in a row; what they hold their weights in differs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 8)

    def weights(self) -> list[Tensor]:
        """Those between the layers."""
        return []

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        for weight in self.weights():
            x = F.linear(x, weight).relu()
        return self.last(self.c(x))


class Plain(Chain):
    """A plain tensor as a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.randn(8, 8)

    def weights(self) -> list[Tensor]:
        return [self.plain]


class Listed(Chain):
    """Modules and Parameters in lists and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(8, 8), {"deep": nn.Sequential(nn.Linear(8, 8))}]
        self.alone = (nn.Parameter(torch.randn(8, 8)),)

    def weights(self) -> list[Tensor]:
        return [self.hidden[0].weight, self.hidden[1]["deep"][0].weight, self.alone[0]]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.hidden[0](x))


class Fleeting(Chain):
    """A buffer that is not saved, as a weight and as a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fleeting", torch.randn(8, 8), persistent=False)
        self.register_buffer("offset", torch.randn(8), persistent=False)
        self.kept = nn.Parameter(torch.randn(8, 8))

    def weights(self) -> list[Tensor]:
        return [self.fleeting]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.linear(F.linear(x, self.fleeting), self.kept, self.offset))


class Buffered(Chain):
    """A saved buffer as a weight, and a BatchNorm whose statistics are not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", torch.randn(8, 8))
        self.norm = nn.BatchNorm1d(8)
        mean = torch.randn(8)
        del self.norm.running_mean
        self.norm.register_buffer("running_mean", mean, persistent=False)
        self.free = nn.Linear(8, 8, bias=False)

    def weights(self) -> list[Tensor]:
        return [self.held]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(self.free(x)).relu())


class Tied(Chain):
    """Parameters tied through `.data`, one of them read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.c.weight.data = self.b.weight.data


class Transposed(Chain):
    """An autoencoder's: one weight is the other's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.c.weight.data = self.b.weight.data.t()


class Slices(Chain):
    """Two weights that overlap, and two that lie side by side in one memory."""

    def __init__(self) -> None:
        super().__init__()
        memory = torch.randn(12, 8)
        self.b.weight.data, self.c.weight.data = memory[:8], memory[4:]
        memory = torch.randn(16, 8)
        self.d = nn.Parameter(memory[:8])
        self.e = nn.Parameter(memory[8:])

    def weights(self) -> list[Tensor]:
        return [self.d, self.e]


class Seen(Chain):
    """A plain attribute that is a parameter's memory under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.view = self.b.weight.data

    def weights(self) -> list[Tensor]:
        return [self.view]


class Expanded(Chain):
    """All rows of a weight are one row."""

    def __init__(self) -> None:
        super().__init__()
        self.b.weight = nn.Parameter(torch.randn(1, 8).expand(8, 8))


class Registered(Chain):
    """Layers that are in a list as well, and a list that leads back."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [self.b, self]

    def weights(self) -> list[Tensor]:
        return [self.layers[0].weight]


DENSE = {  # by the network, its layers that no file could hold, and why
    Plain: {"plain": PLACE},
    Listed: {"hidden[0]": PLACE, "hidden[1]['deep'].0": PLACE, "alone[0]": PLACE},
    Fleeting: {"fleeting": PLACE},
    Buffered: {},
    Tied: {},
    Transposed: {"b": "shares its memory with c", "c": "shares its memory with b"},
    Slices: {"b": "shares its memory with c", "c": "shares its memory with b"},
    Seen: {"b": "shares its memory with view", "view": PLACE},
    Registered: {},
}


def made(kind: type[nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return kind().eval()
    finally:
        torch.set_default_dtype(before)


def images() -> Tensor:
    return torch.randn(300, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", DENSE, ids=lambda kind: kind.__name__)
def test_report_file_and_reloaded_network_agree(kind, dtype, tmp_path) -> None:
    network = made(kind, dtype)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = secateur.prune(network, images(), **OPTIONS)
    report = result.report
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    dense = {layer.name: layer.reason for layer in report.dense_layers}
    for name, why in DENSE[kind].items():
        assert why in dense[name]

    save_safetensors(result.model, tmp_path / "model.safetensors")
    held = load_file(tmp_path / "model.safetensors")
    again = made(kind, dtype)
    if kind in (Slices, Transposed):  # which safetensors' own function refuses
        again.load_state_dict(held)
    else:
        load_model(again, tmp_path / "model.safetensors")
    tensors = dict(again.named_parameters()) | dict(again.named_buffers())
    for layer in report.layers:
        names = (layer.name, f"{layer.name}.weight")
        (saved,) = [held[name] for name in names if name in held]
        (loaded,) = [tensors[name] for name in names if name in tensors]
        assert layer.zeros == int((saved == 0).sum()) == int((loaded == 0).sum()) > 0
    with torch.no_grad():
        x = images().to(dtype)
        assert torch.equal(again(x), result.model(x))
        assert not torch.equal(again(x), network(x))


def test_a_weight_of_one_row_for_all_stays_dense() -> None:
    layers = {one.name: one for one in trace(made(Expanded), images()[:2]).layers}
    assert layers["b"].obstacle == "weight shares its memory with itself"


def test_a_copy_shares_memory_as_the_module_does() -> None:
    for kind in (Tied, Transposed, Slices, Seen):
        twin = copy_module(made(kind))
        shared = twin.view if kind is Seen else twin.c.weight
        with torch.no_grad():
            twin.b.weight[4:] = 7
        assert (shared == 7).any()
        assert not (made(kind).b.weight == 7).any()


def test_tied_weights_are_one_layer_and_count_once() -> None:
    (layer,) = [one for one in trace(made(Tied), images()[:2]).layers if one.name in ("b", "c")]
    assert layer.name == "b"
    assert len(layer.calls) == 2
    result = secateur.prune(made(Tied), images(), **{**OPTIONS, "include": "*"})
    tensors = 3 * 64 + 4 * 8
    assert result.report.network_sparsity == pytest.approx(96 / tensors, abs=0.01)
    bits = (32 * (96 + 32) + 192) / (32 * tensors)
    assert result.report.bytes_fraction == pytest.approx(bits, abs=0.01)


# wrapped networks


def within() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def compiled(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, when its compiler is imported
        return torch.compile(net, backend="eager")  # the wrapper matters, not the compiler


class Parts(nn.Module):
    """A network whose parts are wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.DataParallel(within()), compiled(within())

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, AveragedModel, compiled, lambda net: nn.DataParallel(compiled(net))]
)  # fmt: skip
def test_a_wrapped_network_is_pruned_as_the_network_within(wrap) -> None:
    plain = secateur.prune(within(), images(), **OPTIONS)
    wrapped = wrap(within())
    found = secateur.prune(wrapped, images(), **OPTIONS)
    assert type(found.model) is nn.Sequential
    assert {**found.model.state_dict()}.keys() == plain.model.state_dict().keys()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)
    assert [one.name for one in secateur.inspect(wrapped, (8,)).layers] == ["0", "2", "4"]
    assert secateur.evaluate(wrapped, images(), reference=within()).agreement == 100


def test_distributed_data_parallel_is_unwrapped_too(monkeypatch) -> None:
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)  # no process group here
    nn.Module.__init__(wrapped)
    wrapped.module = within()
    assert secateur.inspect(wrapped, (8,)).layers[0].name == "0"


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.11"), reason="PyTorch cannot export compiled parts"
)
def test_wrapped_parts_of_a_network_are_pruned_where_they_are() -> None:
    result = secateur.prune(Parts(), images(), **OPTIONS)
    assert len(result.report.layers) == 5
    assert type(result.model) is Parts
    with torch.no_grad():
        assert int((result.model.first.module[2].weight == 0).sum()) == 32


class Given(nn.Module):
    """A network within, and a forward that is given."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.net, self.given = within(), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.given(self.net, x)


class Star(Given):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.net(*inputs)


class StarAfter(Given):
    def forward(self, x: Tensor, *more: Tensor, flag: bool = True, **options: object) -> Tensor:
        return self.net(x)


def autocast(net: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = net(x)
        with torch.autocast("cpu", enabled=False):
            x = net[2](x.float())
        x = net[4](x.to(torch.bfloat16))
    return x.float()


def no_grad(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net[:2](x)
    with torch.enable_grad():
        return net[2:](x)


def checkpointed(net: nn.Module, x: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)


def inference(net: nn.Module, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(False), torch.random.fork_rng(devices=[]):
        return net(x)


FORWARDS = [
    Star(None),
    StarAfter(None),
    *(Given(forward) for forward in (autocast, no_grad, checkpointed, inference)),
]


@pytest.mark.parametrize(
    "network",
    FORWARDS,
    ids=lambda of: of.given.__name__ if of.given else type(of).__name__,
)
def test_what_forward_does_around_layers_does_not_hide_them(network) -> None:
    result = secateur.prune(network, images(), **{**OPTIONS, "recipe": RECIPES["default"]})
    assert [one.name for one in result.report.layers] == ["net.2", "net.4"]
    assert int((result.model.net[2].weight == 0).sum()) == result.report.layers[0].zeros
    told = any("torch.autocast" in note for note in result.report.notes)
    assert told == (network.given is autocast)
    graph = trace(network, images()[:2])
    assert not any("control flow" in note for note in graph.notes)
    assert all(value.dtype == torch.float32 for value in graph.parameters.values())
    with torch.no_grad():
        difference = (result.model(images()) - network(images())).square().mean()
        assert float(difference / network(images()).var()) < 0.5


# networks that cannot be pruned as they are: one sentence, with the cause and the way out


class TwoInputs(nn.Module):
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image * mask


class Keywords(nn.Module):
    def forward(self, **inputs: Tensor) -> Tensor:
        return inputs["pixels"]


class DynamicCache:
    """As transformers' language models return it."""


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"logits": self.head(x), "past_key_values": DynamicCache()}


class Custom(Cached):
    def forward(self, x: Tensor) -> object:
        return Custom.Result(self.head(x))

    class Result:
        """No tensor."""

        def __init__(self, x: Tensor) -> None:
            self.x = x


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return torch.jit.trace(within(), images()[:2])


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return within()


def half_lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are "under heavy development"
        return nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8), nn.LazyBatchNorm1d())


SENTENCES = {
    "two inputs": (TwoInputs, "takes (2 inputs .|the inputs )image, mask"),
    "keywords": (Keywords, r"takes keywords only \(\*\*inputs.*wrap it"),
    "cache": (Cached, r"a DynamicCache,.*use_cache = False"),
    "custom output": (Custom, r"an object of type .*Custom.Result, expected tensors.*wrap it"),
    "script": (scripted, r"the model is a TorchScript module.*state_dict\(\)"),
    "script within": (lambda: nn.Sequential(scripted()), "the model's part 0 is a TorchScript"),
    "meta": (on_meta, r"on the device meta, without values \(0.weight, 0.bias, 2.weight and 3 "),
    "lazy": (half_lazy, r"no weights yet \(1.weight, 1.bias.*run it once"),
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_what_cannot_be_pruned_is_told_in_one_sentence(kind) -> None:
    make, says = SENTENCES[kind]
    for call in (
        lambda network: secateur.prune(network, images(), **OPTIONS),
        lambda network: secateur.inspect(network, (8,)),
    ):
        with pytest.raises((ModelError, DataError), match=says) as error:
            call(make())
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99", 3.5])
def test_a_device_that_is_not_there_is_one_sentence(device) -> None:
    for call in (
        lambda: secateur.prune(within(), images(), device=device, **OPTIONS),
        lambda: secateur.plan(within(), images(), device=device, sparsity=0.5),
        lambda: secateur.inspect(within(), (8,), device=device),
    ):
        with pytest.raises(
            OptionError, match=r"device is .*, expected (one that this PyTorch|an object)"
        ):
            call()


@pytest.mark.parametrize(
    "held", [threading.Lock(), {"rows": (of for of in "ab")}], ids=["lock", "generator"]
)
def test_what_cannot_be_copied_is_named(held) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    network[2].held = held
    with pytest.raises(ModelError, match=r"cannot be copied for its attribute 2\.held .*TypeError"):
        secateur.prune(network, torch.randn(8, 3, 8, 8), sparsity=0.5)
    assert network[2].held is held
