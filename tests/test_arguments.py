"""A wrong value of any argument of any public function is one sentence, never a traceback."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports
import torch
from jaxtyping import config
from torch import nn

import secateur
from secateur import OptionError, Preprocess, Recipe, Report, SecateurError

REPORT = reports.report()
IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FAST = {"method": "magnitude", "allocation": "uniform", "progress": False}


@pytest.fixture(autouse=True)
def only_our_checks() -> Iterator[None]:
    """Without the checks of types that tests have for some modules."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()).eval()


class NoMethod:
    """Has no `solve`."""


class Needy:
    """A method that is not made without arguments."""

    def __init__(self, rate: float) -> None:
        self.rate = rate


IMAGES_GIVEN = [
    5,
    None,
    b"bytes",
    {},
    [],
    IMAGES.to_sparse(),
    torch.ones(4, 3, 8, 8, device="meta"),
    torch.nested.nested_tensor([torch.ones(3, 8, 8)], layout=torch.jagged),
    [IMAGES.to_sparse()],
    np.array(["a", "b"]),
    object(),
]
MODELS = [5, None, nn.Linear, {}, b"net.onnx", object(), "", "no such file.onnx", torch.ones(3)]
WHOLE = ["5", 2.5, 0, -1, True, [1], float("nan"), object()]
SEEDS = ["5", 2.5, -1, None, True, 2**40]
PREPROCESS = [5, "bilinear", (0.5, 0.5), object()]
PATHS = [None, 5, b"out", [], object()]
FLAGS = ["yes", 1, None, []]
NAMES = [5, True, [5], {"a": 1}, b"conv", [["a"]]]
SHARES = ["0.5", [0.5], True, float("nan"), -0.1, 1j, object()]

PRUNING: dict[str, list[Any]] = {
    "model": MODELS,
    "data": IMAGES_GIVEN,
    "evaluation": [wrong for wrong in IMAGES_GIVEN if wrong is not None],
    "preprocess": PREPROCESS,
    "recipe": [5, {}, None, Recipe, nn.Linear, ["paper"], "papre", Path("paper"), "no.toml"],
    "pattern": [5, "structured", "4:2", "0x4", nn.Linear, NoMethod, NoMethod(), {}],
    "method": [5, "obs", nn.Linear, Needy, NoMethod, NoMethod(), {}, ["admm"]],
    "allocation": [5, "equal", nn.Linear, NoMethod, NoMethod(), {}],
    "inputs": [5, "both", True, ["dense"]],
    "include": NAMES,
    "exclude": NAMES,
    "max_images": WHOLE,
    "max_columns": [*WHOLE, None],
    "seed": SEEDS,
    "device": [2.5, "gpu", [], "meta", object()],
    "mask": [5, "no such input", "~", ["mask"], object()],
    "output": [2.5, -1, True, "no such output", 7, [0], object()],
    "judge": [5, "cosine", True, ["classes"], "tokens"],
    "metric": [5, "top1", lambda: 1.0, object()],
    "progress": [5, "bar", lambda: None, lambda done: None, [], object()],
}
MEMORY = [0, -1, 2.5, True, "4", "much", "GB", ["4 GB"], object()]
WORK_DIRS = [5, True, b"run", ["run"], Path(__file__)]
RECIPE = ("recipe", "pattern", "method", "allocation", "inputs", "max_columns")
TARGETS: dict[str, list[Any]] = {
    **{name: SHARES for name in ("sparsity", "max_macs", "max_bytes", "max_drop", "max_latency")},
    "runtime": [5, "tensorflow", True, ["onnxruntime"]],
    "threads": [*WHOLE, None],
    "then_sparsity": SHARES,
    "quantize": [8, "int4", True, ["int8"]],
    "memory": MEMORY,
}
TABLE: dict[str, dict[str, list[Any]]] = {
    "prune": {**PRUNING, **TARGETS, "work_dir": WORK_DIRS},
    "plan": {**PRUNING, **TARGETS, "work_dir": WORK_DIRS},
    "sweep": {
        **PRUNING,
        "memory": MEMORY,
        "work_dir": WORK_DIRS,
        "sparsities": [None, 0.5, "0.5", [], ["0.5"], [None], {}, {"a": 1}, [1.5], object()],
    },
    "advise": {
        **{name: of for name, of in PRUNING.items() if name not in RECIPE},
        **{name: SHARES for name in ("sparsity", "blocks", "max_macs")},
        "seconds": ["5", -1, None, True, float("nan")],
        "threads": [*WHOLE, None],
    },
    "inspect": {
        "model": MODELS,
        "shape": [28, "28", (), (3, 0, 8), (3, 8.5, 8), (3, "8", 8), {}, [None], 2.5],
        "data": [wrong for wrong in IMAGES_GIVEN if wrong is not None],
        "preprocess": PREPROCESS,
        "pattern": PRUNING["pattern"],
        "device": PRUNING["device"],
    },
    "evaluate": {
        "model": MODELS,
        "data": IMAGES_GIVEN,
        "labels": [5, "1", [1.5], {}, object(), torch.ones(40).to_sparse()],
        "reference": [wrong for wrong in MODELS if wrong is not None],
        "batch_size": [*WHOLE],
        "preprocess": PREPROCESS,
        "output": [2.5, -1, True, "no such output", 7, [0], object()],
        "judge": [5, "cosine", True, ["classes"], "tokens"],
        "mask": [5, "no such input", object()],
        "metric": [5, "top1", lambda: 1.0, lambda net: None, object()],
    },
    "quantize": {
        "model": MODELS,
        "data": IMAGES_GIVEN,
        "preprocess": PREPROCESS,
        "max_images": WHOLE,
        "seed": SEEDS,
    },
    "accelerate": {
        "model": [*MODELS, "hf:"],
        "data": IMAGES_GIVEN,
        "runtime": [5, "onnxruntime", True, None],
        "batch": [*WHOLE, None],
        "cuda_graph": FLAGS,
        "kernels": [5, None, [], ["fast"], "fast", [5]],
        "exclude": NAMES,
        "preprocess": PREPROCESS,
        "max_images": WHOLE,
        "mask": [5, "no such input", "~", ["mask"], object()],
        "seed": SEEDS,
    },
    "load_accelerated": {
        "model": [5, None, nn.Linear, "net.onnx", {}],
        "path": [*PATHS, "no such.safetensors", Path("no such.safetensors")],
    },
    "runtimes": {},
    "bench_modules": {
        "dense": MODELS,
        "data": IMAGES_GIVEN,
        "pruned": [wrong for wrong in MODELS if wrong is not None],
        "batches": [5, [], [0], ["1"], None, [1.5]],
        "lengths": [5, [0], ["1"], [1.5]],
        "compiled": FLAGS,
        "threads": [*WHOLE, None],
        "rounds": [*WHOLE, None],
        "preprocess": PREPROCESS,
    },
    "load": {
        "model": [5, None, nn.Linear, "net.onnx", {}],
        "weights": [*PATHS, "no such.safetensors", Path("no such.safetensors")],
    },
    "load_images": {
        "data": IMAGES_GIVEN,
        "preprocess": PREPROCESS,
        "max_images": WHOLE,
        "seed": SEEDS,
        "labelled": FLAGS,
        "takes": [5, ("x",), {}, object()],
    },
    "fractal_images": {
        "count": [*WHOLE, None],
        "size": [*WHOLE, None],
        "channels": [*WHOLE, None],
        "seed": ["5", 2.5, -1, None, True],
    },
    "pack": {"path": PATHS, "out": PATHS, "overwrite": FLAGS},
    "unpack": {
        "path": PATHS,
        "out": PATHS,
        "overwrite": FLAGS,
        "max_bytes": ["5", 2.5, -1, True, [1]],
    },
    "save_page": {
        "report": [5, None, "report.json", Path("report.json"), Report, {}],
        "path": PATHS,
        "bench": [5, "bench.json", {}],
        "overwrite": FLAGS,
    },
    "compare_reports": {
        "first": [5, None, "report.json", Path("report.json"), Report],
        "second": [5, None, "report.json", Path("report.json"), Report],
        "names": [None, "ab", ("a",), ("a", "b", "c"), (1, 2)],
    },
    "bench": {
        "files": [(None,), (5,), ()],
        "threads": WHOLE,
        "batch": [*WHOLE, None],
        "rounds": [*WHOLE, None],
        "sparse_rate": [*SHARES, 0, 1, None],
        "seed": SEEDS,
        "progress": [5, True, lambda: None, lambda done: None],
    },
}


def right(function: str) -> dict[str, Any]:
    """Arguments of a function that are right."""
    fit = {"model": network(), "data": IMAGES, **FAST}
    return {
        "prune": {**fit, "sparsity": 0.5},
        "plan": {**fit, "sparsity": 0.5},
        "sweep": {**fit, "sparsities": [0.5]},
        "advise": {"model": network(), "data": IMAGES, "seconds": 0, "max_images": 8},
        "inspect": {"model": network(), "shape": (3, 8, 8)},
        "evaluate": {"model": network(), "data": IMAGES, "reference": network()},
        "quantize": {"model": network(), "data": IMAGES},
        "accelerate": {"model": network(), "data": IMAGES},
        "bench_modules": {"dense": network(), "data": IMAGES},
        "load_accelerated": {"model": network(), "path": "net.safetensors"},
        "load": {"model": network(), "weights": "net.safetensors"},
        "load_images": {"data": IMAGES},
        "fractal_images": {"count": 1, "size": 8},
        "pack": {"path": "net.safetensors", "out": "net.packed"},
        "unpack": {"path": "net.packed", "out": "net.safetensors"},
        "save_page": {"report": REPORT, "path": "page.html"},
        "compare_reports": {"first": REPORT, "second": REPORT},
        "bench": {"files": ("net.onnx",)},
    }[function]


def with_wrong(function: str, argument: str, wrong: Any) -> dict[str, Any]:
    arguments = {**right(function), argument: wrong}
    if function != "advise" and argument in ("max_macs", "max_bytes", "max_drop", "max_latency"):
        arguments.pop("sparsity", None)
    if not function.startswith(("bench", "accelerate", "advise")) and argument in (
        "max_latency",
        "runtime",
        "threads",
    ):
        arguments.pop("sparsity", None)
        arguments = {"max_latency": 0.9, "runtime": "onnxruntime", **arguments}
    if argument == "then_sparsity":
        arguments["pattern"] = "channels"
    return arguments


def called(name: str, arguments: dict[str, Any]) -> Any:
    files = arguments.pop("files", ())
    return getattr(secateur, name)(*files, **arguments)


CASES = [(function, argument) for function, arguments in TABLE.items() for argument in arguments]


def in_words(value: Any) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


def refuses(call: Callable[[], Any]) -> str:
    with pytest.raises(SecateurError) as error:
        call()
    told = str(error.value)
    assert "\n" not in told
    assert "expected" in told or "no such file" in told or "cannot be read" in told
    return told


@pytest.mark.parametrize(("function", "argument"), CASES)
def test_a_wrong_argument_is_one_sentence(function, argument, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for wrong in TABLE[function][argument]:
        arguments = with_wrong(function, argument, wrong)
        refuses(lambda arguments=arguments: called(function, arguments))
        assert list(tmp_path.iterdir()) == []


def test_the_table_has_every_argument_of_every_public_function() -> None:
    public = {name: getattr(secateur, name) for name in secateur.__all__}
    functions = {name: of for name, of in public.items() if inspect.isfunction(of)}
    assert set(TABLE) == set(functions)
    for name, function in functions.items():
        assert set(TABLE[name]) == set(inspect.signature(function).parameters)


def preprocessing() -> Iterator[tuple[str, Any]]:
    for name in ("size", "resize"):
        yield from ((name, wrong) for wrong in WHOLE)
    for name in ("mean", "std"):
        yield from ((name, wrong) for wrong in (0.5, "0.5", ["a"] * 3, [None] * 3, {}, object()))
    yield from (("channels", wrong) for wrong in [*WHOLE, None])
    yield from (("interpolation", wrong) for wrong in (None, 2, "cubic", ["bilinear"]))


@pytest.mark.parametrize(("name", "wrong"), list(preprocessing()), ids=in_words)
def test_a_wrong_preprocessing_is_one_sentence(name: str, wrong: Any) -> None:
    assert name in refuses(lambda: Preprocess(**{name: wrong}))


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        (name, wrong)
        for name, values in {
            "out": PATHS,
            **{name: FLAGS for name in ("onnx", "openvino", "overwrite")},
            "int8": ["yes", 1, []],
            "progress": PRUNING["progress"],
        }.items()
        for wrong in values
    ],
    ids=in_words,
)
def test_a_wrong_argument_of_save_is_one_sentence(argument, wrong, pruned, tmp_path) -> None:
    refuses(lambda: pruned.save(**{"out": tmp_path / "out", argument: wrong}))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def pruned() -> secateur.PruneResult:
    return secateur.prune(network(), IMAGES, sparsity=0.5, **FAST)


@pytest.mark.parametrize("wrong", PATHS, ids=in_words)
def test_paths_that_are_none(wrong, pruned) -> None:
    for call in (Recipe.load, Recipe().save, Report.load, reports.report().save):
        refuses(lambda call=call: call(wrong))
    refuses(lambda: Recipe.of(wrong))
    refuses(lambda: pruned.after(wrong))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Preprocess(mean=0.5), "Preprocess's mean is 0.5, expected finite numbers or None"),
        (
            lambda: Preprocess(size="28"),
            "size is '28', expected a whole number at least 1, 2 numbers",
        ),
        (
            lambda: secateur.inspect(network(), 28),
            "shape is 28, expected whole numbers or None",
        ),
        (
            lambda: secateur.save_page("a.json", "a.html"),
            "report is 'a.json', expected an object of kind Report or an object of kind Sweep: "
            "Report.load or Sweep.load reads one",
        ),
        (
            lambda: secateur.prune(network(), IMAGES, sparsity=0.5, include=5),
            "include is 5, expected a text, a list of texts or None",
        ),
        (
            lambda: secateur.prune(network(), IMAGES, sparsity=0.5, recipe=Path("paper")),
            r"recipe='paper' is the one of that name",
        ),
        (
            lambda: secateur.accelerate(network(), IMAGES, kernels=["fast"]),
            "expected 'sparse', 'dense' or 'float' or a list of 'sparse', 'dense' or 'float'",
        ),
        (
            lambda: secateur.prune(network(), IMAGES, sparsity=0.5, progress=lambda: None),
            "progress is a function that cannot be called with .done, total, layer.: too many",
        ),
    ],
)
def test_what_is_told(make: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        make()


def test_arrays_and_numbers_of_numpy_are_taken() -> None:
    how = Preprocess(size=np.int64(8), mean=np.full(3, 0.5), std=torch.full((3,), 0.25))
    assert how == Preprocess(size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert secateur.inspect(network(), np.array([3, 8, 8])).layers


def test_names_of_layers_may_be_a_set() -> None:
    names = ["2", "0"]
    for given in ({"2", "0"}, frozenset(names), dict.fromkeys(names).keys(), tuple(names)):
        plan = secateur.plan(network(), IMAGES, sparsity=0.5, include=given, **FAST)
        assert {layer.name for layer in plan.layers} == {"0", "2"}
    result = secateur.prune(
        network(), IMAGES, sparsity=0.5, exclude={"2"}, include={"2", "0"}, **FAST
    )
    assert result.report.requested["include"] == ["0", "2"]
    assert [layer.name for layer in result.report.layers] == ["0"]
