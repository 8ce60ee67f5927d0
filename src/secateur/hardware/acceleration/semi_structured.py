"""`accelerate` for NVIDIA GPUs: float16, linear layers in 2:4 by PyTorch's semi-structured kernels.

PyTorch stores half of the weights and their places, and sparse tensor cores multiply with them.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured
from torch.sparse.semi_structured import SparseSemiStructuredTensor

from secateur.errors import ModelError
from secateur.frontends import open as open_model
from secateur.frontends.torch.modules import copy_module
from secateur.hardware.acceleration.choice import fastest
from secateur.hardware.acceleration.replacing import replaced
from secateur.hardware.acceleration.report import LayerAcceleration
from secateur.hardware.acceleration.work import ROUNDS, Work
from secateur.hardware.layer_facts import LayerFacts, is_two_of_four
from secateur.hardware.machine import Machine
from secateur.hardware.runtimes.pytorch import RUNTIME

if TYPE_CHECKING:
    from collections.abc import Generator

    from secateur.hardware.acceleration.candidates import Candidate, Found
    from secateur.network.samples import Samples

GPU, HALF = torch.device("cuda"), torch.float16
_REPEATS = 10  # runs of a round
_FEW_ROWS = 1024  # of a layer's inputs, which are repeated
_WRONG = 1e-2  # of the outputs' size: both forms round to float16


def missing() -> str:
    """Why this machine cannot run such layers, in a few words; empty where it can."""
    return RUNTIME.obstacle_here(Machine.here())


class SemiStructuredLinear(nn.Linear):
    """An `nn.Linear` on a GPU whose 2:4 weight is in the form that sparse tensor cores take."""

    accelerated_for: ClassVar[str] = "torch-cuda-2:4"

    @classmethod
    def of(cls, layer: nn.Linear) -> SemiStructuredLinear:
        """The same layer; its weight is to have two zeros in each four, in half precision."""
        found = cls(1, 1, layer.bias is not None, device="meta")
        found.out_features, found.in_features = layer.weight.shape
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor is in protot.*")
            weight = to_sparse_semi_structured(layer.weight.detach())
        found.weight, found.bias = nn.Parameter(weight, requires_grad=False), layer.bias
        return found.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """The output, its rows one after another: the kernel gives columns."""
        return super().forward(input).contiguous()


def packed_layers(model: nn.Module) -> dict[str, SemiStructuredLinear]:
    """The layers of a module that run a 2:4 kernel, by name."""
    every = model.named_modules()
    return {name: of for name, of in every if isinstance(of, SemiStructuredLinear)}


def is_packed(weight: Tensor) -> bool:
    """Whether a weight is in the form that sparse tensor cores take."""
    return isinstance(weight, SparseSemiStructuredTensor)


class SemiStructuredWork(Work):
    """Each linear layer in 2:4 by the kernel that is faster; everything else in float16."""

    nothing = (
        "no layer can run a 2:4 kernel ({why}), expected linear layers in the pattern: prune with "
        "pattern='2:4', or"
    )

    def __init__(
        self,
        original: nn.Module,
        model: nn.Module,
        samples: Samples,
        *,
        batch: int,
        allowed: Sequence[str],
        graph: bool,
    ) -> None:
        original, model = copy_module(original).eval().to(GPU), model.to(GPU, HALF)
        super().__init__(original, model, samples, batch=batch, allowed=allowed)
        self.graph = graph
        name = torch.cuda.get_device_name()
        how = "in a CUDA graph" if graph else "launched from Python one by one, not in a CUDA graph"
        self.notes.append(f"measured on {name}, kernels {how}")

    def obstacles(self, found: Found) -> Mapping[str, str]:
        """See `Work`."""
        reasons = {of.name: _obstacle(of) for of in found.candidates}
        return {name: reason for name, reason in reasons.items() if reason}

    def replace_layers(self, found: Found) -> Found:
        """See `Work`."""
        inputs = self._inputs(found.candidates)
        unseen = {of.name for of in found.candidates} - inputs.keys()
        found = found.without(dict.fromkeys(unseen, "it never runs"))
        self.check_any(found)
        for of in found.candidates:
            self.layers[of.name] = self._chosen(of, *inputs[of.name])
        return found

    def warnings(self) -> list[str]:
        """See `Work`."""
        chosen = [of for of in self.layers.values() if not of.reason]
        if "sparse" not in self.allowed or any(of.kernel == "sparse" for of in chosen):
            return []
        more = "" if self.graph else ", or in a CUDA graph: cuda_graph=True"
        return [
            "no layer runs the 2:4 kernel: the dense one is faster for each of them here; wide "
            f"layers with many rows gain, such as with a larger batch than {self.batch}{more}"
        ]

    def times(self) -> dict[str, float]:
        """Milliseconds of a run in float32, in float16 and accelerated, on the GPU."""
        few = self.few().to(GPU)
        forms = {
            "float": self.original,
            "half": copy_module(self.original).to(GPU, HALF),
            "accelerated": self.model,
        }
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            runs = {}
            for name, form in forms.items():
                run = stack.enter_context(open_model(form).running(few))
                given = few if name == "float" else few.floats(lambda tensor: tensor.to(HALF))
                runs[name] = partial(run, given)
            found = gpu_seconds(runs, graph=self.graph)
        return {name: 1e3 * statistics.median(of) for name, of in found.items()}

    def _inputs(self, candidates: Sequence[Candidate]) -> dict[str, tuple[Tensor, int]]:
        """Some rows of the inputs of each layer, and how many it has, of a batch as it will be."""
        seen = dict[str, tuple[Tensor, int]]()

        def keep(name: str, _: nn.Module, given: tuple[Tensor, ...], named: Any) -> None:
            value = given[0] if given else named["input"]
            rows = value.detach().reshape(-1, value.shape[-1])
            if name not in seen or seen[name][1] < len(rows):
                seen[name] = rows[:_FEW_ROWS].clone(), len(rows)

        handles = [
            of.module.register_forward_pre_hook(partial(keep, of.name), with_kwargs=True)
            for of in candidates
        ]
        few = self.few().to(GPU)
        try:
            with open_model(self.model).running(few) as run, torch.no_grad():
                run(few)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def _chosen(self, of: Candidate, some: Tensor, count: int) -> LayerAcceleration:
        rows = some[torch.arange(count, device=GPU) % len(some)]
        assert isinstance(of.module, nn.Linear)
        layers = {"dense": of.module, "sparse": SemiStructuredLinear.of(of.module)}
        layers = {name: layers[name] for name in self.allowed if name in layers}
        with torch.inference_mode():
            exact = of.module(some).float()
            error = {
                name: float((layer(some).float() - exact).norm() / exact.norm())
                for name, layer in layers.items()
            }
            runs = {name: partial(layer, rows) for name, layer in layers.items()}
            times = gpu_seconds(runs, graph=self.graph)
        least = {name: min(found) for name, found in times.items()}
        kernel = fastest(least, self.allowed, plain="dense")
        if not error[kernel] <= _WRONG:
            raise ModelError(
                f"PyTorch's 2:4 kernel is off by {error[kernel]:.1%} in the layer {of.name}, "
                "expected rounding only: leave it out with exclude, and please report your GPU"
            )
        matrix = of.matrix
        if kernel == "sparse":
            replaced(self.model, of.module, layers["sparse"])
        return LayerAcceleration(
            name=of.name,
            kind=of.kind,
            kernel=kernel,
            shape=tuple(matrix.shape),
            zeros=float((matrix == 0).double().mean()),
            rows=count,
            milliseconds={name: 1e3 * value for name, value in least.items()},
            error=error[kernel] ** 2,
        )


def _obstacle(of: Candidate) -> str:
    """Why a layer cannot have a 2:4 kernel; empty where it can."""
    if of.kind != "linear":
        return f"{of.kind}: only linear layers"
    matrix = of.matrix
    facts = LayerFacts(
        kind="linear",
        shape=tuple(matrix.shape),
        dtype="float16",
        two_of_four=is_two_of_four(matrix),
    )
    return "; ".join(RUNTIME.layer(facts))


def gpu_seconds(runs: Mapping[str, Callable[[], Any]], *, graph: bool) -> dict[str, list[float]]:
    """Seconds of each function on the GPU, rounds in which they take turns.

    Args:
        runs: what to measure, by name.
        graph: whether each is captured in a CUDA graph first, so that nothing is launched from
            Python.

    Raises:
        ModelError: one cannot be captured.
    """
    with ExitStack() as stack:
        repeated = {
            name: stack.enter_context(_captured(run)) if graph else partial(_repeat, run)
            for name, run in runs.items()
        }
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in repeated.items():
                run()  # a GPU is as fast as what ran before has left it cool
                torch.cuda.synchronize()
                start = time.perf_counter()
                run()
                torch.cuda.synchronize()
                found[name].append((time.perf_counter() - start) / _REPEATS)
    return found


def _repeat(run: Callable[[], Any]) -> None:
    for _ in range(_REPEATS):
        run()


@contextmanager
def _captured(run: Callable[[], Any]) -> Generator[Callable[[], None]]:
    """A function's kernels as a CUDA graph, which is freed afterwards."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            _repeat(run)
    except RuntimeError as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"the network cannot be captured in a CUDA graph ({said[:200]}), expected one that "
            "never waits for the GPU: leave out cuda_graph"
        ) from error
    try:
        yield graph.replay
    finally:
        graph.reset()
