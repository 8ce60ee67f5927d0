"""Shared by all tests: shape checks at run time, and the folder of shared data."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import pickle
import pkgutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import pytest
import torch
from jaxtyping import install_import_hook

# Before anything imports secateur: jaxtyping's shapes are checked by beartype, in tests only, and
# only in those of `_SHAPES`.
_HOOKED = [
    "core.methods",
    "core.normal_equations",
    "core.patterns",
    "core.problem",
    "core.statistics",
    "evaluation.evaluation_set",
    "evaluation.inference",
    "evaluation.metrics",
    "network.geometry",
]
with install_import_hook([f"secateur.{name}" for name in _HOOKED], "beartype.beartype"):
    import secateur

    _ = [getattr(secateur, of) for of in secateur.__all__]  # read on first use, which is here

# The same examples every time: what passes today passes next month.
hypothesis.settings.register_profile("the same", derandomize=True)
hypothesis.settings.load_profile("the same")

# Lines of progress come when a step takes long, which depends on the machine.
secateur.support.progress.FIRST = 1e6


def _unmeasured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without coverage's tracer, which is told of every line that PyTorch's exporter runs.

    Two thirds of the time of the tests is spent there, and twice as much of it with the tracer.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*arguments, **options)
        finally:
            sys.settrace(tracer)
            _nothing()  # at a call the tracer takes its place again, before this one returns

    return call


def _nothing() -> None: ...


def _remembered(export: Callable[..., Any]) -> Callable[..., Any]:
    """Exports equal modules once: most tests prune the same few networks again and again.

    Equal are modules that pickle to the same bytes, with the same functions and the same inputs.
    Each caller gets a copy of the program, on its own module's tensors, for programs are changed.
    """
    programs: dict[Any, tuple[Any, Any]] = {}

    @functools.wraps(export)
    def call(module: Any, arguments: Any, *others: Any, **options: Any) -> Any:
        key, functions = _identity(module, arguments, others, options)
        state = module.state_dict(keep_vars=True)
        if key is not None and key in programs:
            twin = _copied(programs[key][0])
            twin.state_dict.update({name: state[name] for name in twin.state_dict})
            return twin
        program = export(module, arguments, *others, **options)
        if key is not None and _is_copyable(program, state):
            own = dict(program.state_dict)
            program.state_dict.update(dict.fromkeys(own))  # which the copy need not hold
            programs[key] = _copied(program), functions
            program.state_dict.update(own)
        return program

    return call


class _Content(pickle.Pickler):
    """Pickles tensors as their values, and as the number of the first one on the same memory."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.memory: dict[int, int] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        place = self.memory.setdefault(value.data_ptr(), len(self.memory))
        kind = type(value), value.dtype, tuple(value.shape), value.stride(), value.requires_grad
        return place, *kind, value.detach().numpy().tobytes()


def _identity(module: Any, *call: Any) -> tuple[Any, Any]:
    """What tells calls apart, and the functions that it speaks of; None where nothing does."""
    functions = [type(part).forward for part in module.modules()]
    settings = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()
    sizes = (getattr(held, "nbytes", 0) for held in module.state_dict().values())
    if sum(sizes) > _REMEMBERED_BYTES:
        return None, None
    content = io.BytesIO()
    try:
        _Content(content).dump((module, call))
    except Exception:  # it has a lambda, a lock
        return None, None
    digest = hashlib.sha256(content.getvalue()).digest()
    return (digest, settings, *map(id, functions)), functions


def _copied(program: Any) -> Any:
    """A copy of a program; how its calls are nested, which nobody changes, is shared."""
    shared = program.module_call_graph, program.example_inputs
    twin = copy.deepcopy(program, {id(of): of for of in shared})
    for node, own in zip(program.graph.nodes, twin.graph.nodes, strict=True):
        own.name, own.target = node.name, node.target  # copies do not call one "input"
    return twin


def _is_copyable(program: Any, state: Any) -> bool:
    """Whether a program knows its module's tensors by their names in the state dict alone."""
    lifted = all(name.startswith("lifted_tensor") for name in program.constants)
    return lifted and all(held is state.get(name) for name, held in program.state_dict.items())


_REMEMBERED_BYTES = 4e6
torch.export.export = _remembered(_unmeasured(torch.export.export))
torch.export.ExportedProgram.run_decompositions = _unmeasured(
    torch.export.ExportedProgram.run_decompositions
)
torch.onnx.export = _unmeasured(torch.onnx.export)


def _called_once(owner: str, name: str) -> None:
    """Keeps what a function of PyTorch's exporters gives, which is the same at each export.

    Most of an export of a small network is there. The names are private: where a version of
    PyTorch has none of them, exports take longer, and that is all.
    """
    with contextlib.suppress(ImportError, AttributeError):
        held = pkgutil.resolve_name(owner)
        setattr(held, name, staticmethod(functools.cache(getattr(held, name))))


_called_once("torch.onnx._internal.exporter._registration:ONNXRegistry", "from_torchlib")
_called_once("torch._export.utils", "_materialize_cpp_cia_ops")


def _at_hand(model: bytes, images: Any, batch: int) -> Any:
    """First runs of ONNX models here; a model that fails is run again in a process of its own.

    Tests of models that may crash ask for `own_process`.
    """
    try:
        return trial.run(model, images, 1, batch)
    except Exception:
        return _AT_ARMS_LENGTH(model, images, batch)


try:
    from secateur.frontends.onnx import first_run, trial
except ImportError:  # without onnx there are no such models
    first_run = None
else:
    _AT_ARMS_LENGTH, first_run.at_arms_length = first_run.at_arms_length, _at_hand

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return SHARED


# Shapes are checked in the tests of what is hooked, and coverage is measured in those of `core`,
# `network` and `pruning`: each took a quarter of the time, and the others reach hardly more.
_SHAPES = ["allocations", "evaluate", "geometry", "methods", "patterns", "problem", "sampling"]
_SHAPES += ["reconstruction", "walk"]
_NUMERIC = [
    "allocations",
    "arguments",
    "attention",
    "carrying",
    "channels",
    "channels_odd",
    "computed_weights",
    "couplings",
    "distance",
    "few_images",
    "folding",
    "folds",
    "geometry",
    "judging",
    "layer_error",
    "logits",
    "macs",
    "matrix_products",
    "memory",
    "methods",
    "modes",
    "nothing_left",
    "odd_networks",
    "one_answer",
    "ops",
    "outputs",
    "pattern_networks",
    "patterns",
    "permutation",
    "precision",
    "problem",
    "recalibration",
    "recipe",
    "reconstruction",
    "resume",
    "rows",
    "samples",
    "sampling",
    "search",
    "selections",
    "targets",
    "walk",
    "zeros_before",
]
_GONE = {of for of in _SHAPES + _NUMERIC if not Path(__file__).with_name(f"test_{of}.py").is_file()}
assert not _GONE, f"{_GONE} have no file"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    of, tracer = item.path.stem.removeprefix("test_"), sys.gettrace()
    if of not in _NUMERIC:
        sys.settrace(None)
    jaxtyping.config.update("jaxtyping_disable", of not in _SHAPES)
    try:
        return (yield)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
        sys.settrace(tracer)
        _nothing()  # at a call the tracer takes its place again


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():  # the longest tests first: at the end the other cores would wait for them
        items.sort(key=lambda item: "shared" not in item.keywords)
        return
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="../shared/data is absent"))


_LEFT_OUT = ("../shared/data is absent", "no Chromium on this system")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason in _LEFT_OUT:
        skipped = terminalreporter.stats.get("skipped", [])
        count = sum(reason in str(report.longrepr) for report in skipped)
        if count:
            terminalreporter.write_line(f"{count} tests left out: {reason}")


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """First runs of ONNX models in a process of their own, as they are outside of tests."""
    monkeypatch.setattr(first_run, "at_arms_length", _AT_ARMS_LENGTH)
