"""Exported programs, what `torch.export.save` writes to a .pt2 file: read as modules, written back.

Reading one may run code: PyTorch unpickles parts of it and evaluates its expressions. So a .pt2
file is to be trusted like a Python file, unlike weights and ONNX files; and a program that is
called like one of these is not read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from secateur.errors import ModelError

_AGAIN = (
    "export it as torch.export.export(model.eval(), (images,), "
    "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), with two images or more"
)
_GUARDS = "_guards_fn"  # checks of the inputs' shapes, which tracing cannot see through


def read_program(path: str | Path) -> nn.Module:
    """A program as a module with the program's names of parameters and buffers.

    Raises:
        ModelError: it cannot be read or is not called .pt2, takes no batch, batches of one size
            only, or was exported in training mode.
    """
    if Path(path).suffix.lower() != ".pt2":
        raise ModelError(
            f"{path} is an exported program under another name, expected one that ends in .pt2, "
            "for PyTorch may run code that is in such a file: rename it if you trust it"
        )
    program = _read(Path(path))
    _check_input(program, path)
    _check_mode(program, path)
    return as_module(program, str(path))


def as_module(program: ExportedProgram, source: str | None = None) -> fx.GraphModule:
    """A program as a module in eval mode that can be copied and trained."""
    made = program.module()
    for node in list(made.graph.nodes):
        if node.op == "call_module" and node.target == _GUARDS:
            made.graph.erase_node(node)
    module = _Program(made, made.graph)  # the one that is made refuses eval()
    module.source = source
    module._tracer_cls = (
        None  # PyTorch would trace it with the exporter's, and fail, to unpickle it
    )
    _leave_unsaved(module, set(dict(module.named_buffers())) - set(program.state_dict))
    return module.eval()


class _Program(fx.GraphModule):
    """A module of a program whose copies save what it saves.

    Attributes:
        source: the file that it was read from; None = it was made here.
    """

    source: str | None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Program:
        with _quiet():
            twin: Any = super().__deepcopy__(memo)
        twin.source = self.source
        twin._tracer_cls = None
        _leave_unsaved(twin, self._unsaved)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        made: Any = super().__reduce__()
        return _unpickled, (*made[:2], self.source, self._unsaved)

    @property
    def _unsaved(self) -> set[str]:
        """Names of the buffers that are not in the state dict."""
        return set(dict(self.named_buffers())) - set(self.state_dict())


def _unpickled(
    make: Callable[..., fx.GraphModule],
    arguments: tuple[Any, ...],
    source: str | None,
    unsaved: set[str],
) -> _Program:
    """A program from what PyTorch pickles of a module."""
    with _quiet():
        made = make(*arguments)
    module = _Program(made, made.graph)  # of what is computed with, and no counts of batches
    module._modules, module._buffers = made._modules, made._buffers
    module._parameters = made._parameters
    module.source, module._tracer_cls = source, None
    _leave_unsaved(module, unsaved)
    return module.train(made.training)


def _leave_unsaved(module: nn.Module, buffers: Iterable[str]) -> None:
    """Takes buffers out of what a module's state dict holds."""
    for name in buffers:
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._non_persistent_buffers_set.add(leaf)


def program_of(model: Any) -> str | None:
    """The .pt2 file that a network was read from; None for any other network."""
    return model.source if isinstance(model, _Program) else None


def is_program(model: Any) -> bool:
    """Whether a module is a program: read from a file, or traced because channels have left."""
    return isinstance(model, _Program)


def save_program(module: nn.Module, path: Path) -> dict[str, Any]:
    """Writes the program that a module was read from, with the module's weights.

    Args:
        module: from `read_program`, its weights changed.
        path: where to write; it ends in .pt2.

    Returns:
        bytes.

    Raises:
        ModelError: the source cannot be read, or is another program by now.
    """
    source = program_of(module)
    if source is None:
        raise ModelError("the module was not read from a .pt2 file, expected one that was")
    program, state = _read(Path(source)), module.state_dict()
    shapes = {name: tensor.shape for name, tensor in program.state_dict.items()}
    if shapes != {name: tensor.shape for name, tensor in state.items()}:
        raise ModelError(
            f"{source} is no longer the program that was pruned, expected it unchanged: prune again"
        )
    with torch.no_grad():
        for name, tensor in program.state_dict.items():
            tensor.copy_(state[name])
    with _quiet():
        torch.export.save(program, path)
    return {"bytes": path.stat().st_size}


def _read(path: Path) -> ExportedProgram:
    try:
        with _quiet():
            return torch.export.load(path)
    except Exception as error:  # of many kinds
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{path} is not a readable exported program ({first[:200]}), expected what "
            f"torch.export.save of PyTorch {torch.__version__} or older writes: export it again"
        ) from error


def _check_input(program: ExportedProgram, path: str | Path) -> None:
    signature = program.graph_signature
    names = [of.arg.name for of in signature.input_specs if of.kind is InputKind.USER_INPUT]
    values = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    ]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, Tensor) or value.dim() == 0:
            raise ModelError(
                f"{path} takes {name}, which is no batch of samples, expected a tensor with a row "
                "for each sample: export a module that holds it"
            )
        if isinstance(value.shape[0], int):
            raise ModelError(
                f"{path} takes batches of {value.shape[0]} only, expected any number of images: "
                f"{_AGAIN}"
            )


def _check_mode(program: ExportedProgram, path: str | Path) -> None:
    """Raises where an operation drops values at random or takes statistics from the batch."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        names = [of.name for of in schema.arguments]
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        if given.get("train") is True or given.get("training") is True:
            raise ModelError(
                f"{path} was exported in training mode ({node.target}), expected the network as it "
                f"is used: {_AGAIN}"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides PyTorch's warnings about its own formats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
