"""Programs that change nothing in place, whatever the module does."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from inputs import trace
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram

import secateur
from secateur.frontends.torch.program import export
from secateur.network.samples import Samples
from secateur.network.stream import Stream

Forward = Callable[["Body", Tensor], Tensor]


class Body(nn.Module):
    """Layers, and a forward that is given."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.free = nn.BatchNorm2d(8, track_running_stats=False)
        self.relu = nn.ReLU(inplace=True)
        self.register_buffer("count", torch.zeros(()))
        self.given = forward

    def forward(self, x: Tensor) -> Tensor:
        """Something of images (batch, 3, 8, 8)."""
        return self.given(self, x)


def residual(body: Body, x: Tensor) -> Tensor:
    """The form of torchvision's networks."""
    x = body.relu(body.norm(body.first(x)))
    out = body.second(x)
    out += x
    return body.relu(out)


def read_before(body: Body, x: Tensor) -> Tensor:
    x = body.first(x)
    twice = x * 2
    return body.relu(x) + twice


def seen_through_a_view(body: Body, x: Tensor) -> Tensor:
    x = body.first(x)
    part = x[:, :4]
    body.relu(x)
    return part


def of_a_view(body: Body, x: Tensor) -> Tensor:
    x = body.first(x)
    body.relu(x[:, :4])
    return body.second(x)


def of_the_images(body: Body, x: Tensor) -> Tensor:
    y = body.relu(x.clone())
    return body.first(y)


def of_the_batch(body: Body, x: Tensor) -> Tensor:
    return body.free(body.first(x))


def counted(body: Body, x: Tensor) -> Tensor:
    body.count += 1  # type: ignore[operator]
    return body.first(x)


@pytest.mark.parametrize(
    "forward",
    [
        residual,
        read_before,
        seen_through_a_view,
        of_a_view,
        of_the_images,
        of_the_batch,
        counted,
    ],
    ids=lambda function: function.__name__,
)
def test_nothing_is_changed_and_the_outputs_are_the_modules(forward: Forward) -> None:
    body = Body(forward).eval()
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    program, _ = export(body, Samples({"x": x[:2]}))
    for node in program.graph.nodes:
        if isinstance(node.target, OpOverload):
            assert not node.target._schema.is_mutable, node.target
    graph = trace(body, x[:2])
    before = x.clone()
    found = []
    for _ in range(2):  # what is changed in the first run shows in the second
        stream = Stream(graph, graph.parameters, {graph.inputs[0]: x})
        with torch.no_grad():
            stream.advance(len(graph.ops))
        found.append(stream.values[graph.outputs[-1]])
    assert torch.equal(x, before)
    assert torch.equal(*found)
    with torch.no_grad():
        torch.testing.assert_close(found[0], Body(forward).eval()(x.clone()))


def test_the_usual_changes_in_place_need_no_second_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ExportedProgram, "run_decompositions")
    trace(Body(residual).eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(Exception, match="run_decompositions"):
        trace(Body(seen_through_a_view).eval(), torch.randn(2, 3, 8, 8))


def mixed(body: Body, x: Tensor) -> Tensor:
    x = body.first(x)
    x *= torch.ones((), dtype=torch.float64).expand(1)
    return x


def test_a_change_in_place_keeps_the_type_of_what_it_changes() -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = trace(Body(mixed).eval(), x)
    stream = Stream(graph, graph.parameters, {graph.inputs[0]: x})
    stream.advance(len(graph.ops))
    assert stream.values[graph.outputs[0]].dtype == torch.float32


def unread(body: Body, x: Tensor) -> Tensor:
    x = body.norm(body.first(x))
    body.second(x)  # for the loss in training, say
    return x


def test_a_layer_whose_output_nothing_reads_is_none() -> None:
    graph = trace(Body(unread).eval(), torch.randn(2, 3, 8, 8))
    assert [layer.name for layer in graph.layers] == ["first"]


def test_networks_are_traced_one_at_a_time_whatever_the_thread(monkeypatch) -> None:
    networks = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)) for _ in range(3)]
    for network in networks:
        network(torch.zeros(2, 3, 8, 8))
    inside, most, own = [0], [0], torch.export.export

    def watched(*arguments, **options):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        try:
            return own(*arguments, **options)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(torch.export, "export", watched)
    x = Samples({"input": torch.zeros(2, 3, 8, 8)})
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda of: export(of.eval(), x), networks))
    assert most == [1]
    assert [len(list(of.program.parameters())) for of in done] == [4] * 3


def test_what_pytorch_logs_while_it_traces_stays_within(monkeypatch, caplog) -> None:
    """PyTorch 2.14 logs a traceback of an error that it raises as well."""
    real = torch.export.export

    def logs(*arguments, **options):
        logging.getLogger("torch._subclasses.fake_tensor").error("a traceback")
        return real(*arguments, **options)

    monkeypatch.setattr(torch.export, "export", logs)
    trace(nn.Linear(3, 2).eval(), torch.randn(2, 3))
    assert "a traceback" not in caplog.text


def test_the_tests_export_equal_modules_once_and_each_gets_a_program_of_its_own() -> None:
    """See `conftest.py`."""
    images = torch.zeros(2, 3, 8, 8)

    def exported(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
        return torch.export.export(module, inputs or (images,))

    def operations(program: ExportedProgram) -> list[str]:
        return [str(node.target) for node in program.graph.nodes]

    first, equal, other = Body(residual), Body(residual), Body(residual)
    programs = [exported(first), exported(equal), exported(first)]
    before = operations(programs[0])
    programs[0].graph.nodes.__iter__().__next__().name = "changed"
    for module, program in zip((equal, first), programs[1:], strict=True):
        assert operations(program) == before
        assert "changed" not in {node.name for node in program.graph.nodes}
        assert program.state_dict["first.weight"] is module.first.weight
    other.given = read_before
    assert operations(exported(other)) != before
    with torch.no_grad():
        other.given = residual
        other.first.weight.add_(1)
    assert exported(other).state_dict["first.weight"] is other.first.weight
    shapes = [exported(first, images[:, :, :side]).graph.find_nodes(op="output") for side in (8, 7)]
    assert len({str(out[0].args[0][0].meta["val"].shape) for out in shapes}) == 2


def test_a_traced_network_holds_no_second_copy_of_its_weights() -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    graph = trace(network, torch.randn(4, 6))
    held = network.state_dict()
    for name, tensor in graph.parameters.items():
        if name in held and tensor.is_floating_point():
            assert tensor.data_ptr() == held[name].data_ptr()
            assert not tensor.requires_grad
    half = trace(network.half(), torch.randn(4, 6)).parameters["0.weight"]
    assert half.dtype == torch.float32
    result = secateur.prune(network.float(), torch.randn(32, 6), sparsity=0.5, progress=False)
    pruned = result.model.state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-3, atol=1e-3)
        assert pruned[name].data_ptr() != tensor.data_ptr()
