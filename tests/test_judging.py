"""Which output a network is judged by, and by what: found out, or asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from inputs import samples_of, trace
from onnx_models import Builder
from torch import Tensor, nn
from torch.nn.functional import normalize

from secateur.errors import OptionError
from secateur.network import judging
from secateur.network.graph import Graph
from secateur.network.returned import asked_output, named_leaves


@dataclass
class Output:
    hidden: Any
    pooler_output: Any = None


class Pair(NamedTuple):
    boxes: Any
    logits: Any


torch.utils._pytree.register_dataclass(Output, serialized_type_name="Output")


class Network(nn.Module):
    """Two layers, and outputs made of what they give: (batch, 5, 6)."""

    def __init__(self, outputs: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(7, 12), nn.Linear(12, 6)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Any:
        return self.outputs(self.last(self.first(x).relu()))


def inputs(count: int = 3) -> Tensor:
    return torch.randn(count, 5, 7, generator=torch.Generator().manual_seed(1))


def graph_of(outputs: Callable[[Tensor], Any]) -> Graph:
    return trace(Network(outputs).eval(), inputs(2))


def judged(graph: Graph, **how: Any) -> Graph:
    return judging.judged(graph, samples_of(graph, inputs()), **how)


NAMES: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "alone": (lambda x: x, [""]),
    "tuple": (lambda x: (x, x + 1), ["0", "1"]),
    "dictionary": (lambda x: {"a": x, "b": x + 1}, ["a", "b"]),
    "nested": (lambda x: {"b": [x, {"c": x + 1}], "a": x + 2}, ["b.0", "b.1.c", "a"]),
    "dataclass": (lambda x: Output(x, x[:, 0] * 2), ["hidden", "pooler_output"]),
    "named tuple": (lambda x: Pair(x, x * 2), ["boxes", "logits"]),
    "with nothing": (lambda x: {"loss": None, "logits": x}, ["logits"]),
    "with a number": (lambda x: (3, x), ["1"]),
}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_the_names_that_users_know(name) -> None:
    outputs, names = NAMES[name]
    graph = graph_of(outputs)
    assert graph.output_names == names
    assert len(graph.outputs) == len(names)
    returned = Network(outputs)(inputs())
    held = [name for name, of in named_leaves(returned) if isinstance(of, Tensor)]
    assert held == names  # when it runs, too


@pytest.mark.parametrize("name", NAMES)
def test_any_output_can_be_asked_for_by_name_or_number(name) -> None:
    outputs, names = NAMES[name]
    graph = graph_of(outputs)
    for number, output in enumerate(names):
        chosen = {judged(graph, output=asked).outputs[0] for asked in (number, str(number))}
        if output and not output.isdecimal():
            chosen.add(judged(graph, output=output).outputs[0])
        assert chosen == {graph.outputs[number]}
    assert judged(graph).outputs[0] == graph.outputs[0]


def test_a_name_of_digits_is_a_name_first() -> None:
    assert asked_output("1", ["2", "1"]) == 1
    assert asked_output("0", ["2", "1"]) == 0


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("logit", r"output is 'logit', expected loss, logits, or a number from 0 to 1.*logits\?"),
        (2, "output is 2, expected loss, logits, or a number from 0 to 1"),
        (-1, "output is -1, expected loss"),
        ("loss", "output is 'loss', which has no row of numbers for each sample"),
    ],
)
def test_an_output_that_is_not_there_is_one_sentence(asked, told) -> None:
    graph = graph_of(lambda x: {"loss": x.mean(), "logits": x})
    assert judged(graph).outputs[0] == graph.outputs[1]
    with pytest.raises(OptionError, match=told):
        judged(graph, output=asked)


JUDGED = {
    "scores": (lambda x: x[:, 0], "classes"),
    "unit rows": (lambda x: normalize(x[:, 0]), "embeddings"),
    "a name": (lambda x: {"text_embeds": x[:, 0]}, "embeddings"),
    "values": (lambda x: x, "values"),
    "logits": (lambda x: {"logits": x}, "tokens"),
    "logits of classes": (lambda x: {"logits": x[:, 0]}, "classes"),
    "the first of two": (lambda x: {"hidden": x, "logits": x + 1}, "values"),
}


@pytest.mark.parametrize("name", JUDGED)
def test_what_a_graph_is_judged_by(name) -> None:
    outputs, judge = JUDGED[name]
    assert judged(graph_of(outputs)).judge == judge


def test_what_is_asked_for_is_what_it_is_judged_by() -> None:
    graph = graph_of(lambda x: {"hidden": x, "scores": x[:, 0], "one": x[:, 0, :1]})
    assert judged(graph, judge="tokens").judge == "tokens"
    assert judged(graph, output="scores", judge="embeddings").judge == "embeddings"
    assert judged(graph, output="one").judge == "values"
    for asked in ("classes", "embeddings", "tokens"):
        with pytest.raises(OptionError, match=f"judge is '{asked}', and the output has shape"):
            judged(graph, output="one", judge=asked)


def test_a_file_s_outputs_have_its_names() -> None:
    net = Network(lambda x: x).eval()
    build = Builder(5, 7)
    x = build.node("Relu", _linear(build, "input", net.first, "first"))
    hidden = _linear(build, x, net.last, "last")
    pooled = build.node("ReduceMean", hidden, axes=[1], keepdims=0)
    graph = trace(build.model(hidden, pooled), inputs(2))
    assert graph.output_names == [hidden, pooled]
    assert judged(graph).judge == "values"
    found = judged(graph, output=pooled)
    assert (found.outputs[0], found.judge) == (pooled, "classes")


def _linear(build: Builder, x: str, module: nn.Linear, name: str) -> str:
    x = build.node("MatMul", x, build.hold(module.weight.t().contiguous(), f"{name}.weight"))
    return build.node("Add", x, build.hold(module.bias, f"{name}.bias"))
