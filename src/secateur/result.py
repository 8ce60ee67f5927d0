"""What `prune` returns: the pruned network and its report, and the files of both."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.errors import DataError, IncompleteError, ModelError, OptionError, SecateurWarning
from secateur.evaluation.evaluation_set import EvaluationSet
from secateur.evaluation.results import percent_text
from secateur.export.files import (
    ONNX_WRITERS,
    differs,
    far_off,
    save_int8,
    save_int8_ir,
    save_ir,
    save_onnx,
    save_openvino,
    save_safetensors,
)
from secateur.export.int8 import INT8_FILE, recurrent_note
from secateur.frontends import Frontend
from secateur.frontends import open as open_model
from secateur.frontends.first_runs import one_first_run
from secateur.frontends.openvino.runtime import read_ir
from secateur.frontends.torch.exported_programs import is_program, save_program
from secateur.frontends.torch.shrink_program import save_smaller
from secateur.hardware.acceleration.run import Acceleration
from secateur.network.samples import Samples
from secateur.render.page import save_page
from secateur.report.model import Report
from secateur.support.files import check_folder, output_folder
from secateur.support.leftovers import clear_away, remove_all
from secateur.support.progress import ShowProgress, Teller, telling
from secateur.support.settings import check_arguments

WEIGHTS, ONNX, INT8 = "model.safetensors", "model.onnx", "model-int8.onnx"
PROGRAM = "model.pt2"  # of a network that came in such a file
OWN_IR, OWN_INT8_IR = "model.xml", INT8_FILE  # of a network that came in such a file
IR, INT8_IR = "openvino/model.xml", "openvino/model-int8.xml"
_OF_PROGRAM = (
    f"{WEIGHTS} holds the weights of the traced program in {PROGRAM}, and does not load into the "
    f"class that the network came from: use {PROGRAM}"
)
REPORT, PAGE = "report.json", "report.html"
_FILES = (WEIGHTS, ONNX, INT8, PROGRAM, OWN_IR, OWN_INT8_IR, IR, INT8_IR)


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes:
        model: the pruned copy of the network: a module in eval mode, or an `onnx.ModelProto` or
            `openvino.Model` if the network was one or such a file.
        report: what happened to each layer, accuracy, size, settings and warnings.
        steps: for a recipe with several steps, the parameters that differ from the dense
            network's after each step, by name; see `after`.
        quantized: the pruned network in INT8, an `onnx.ModelProto`, or an `openvino.Model` of one;
            if requested.
        evaluation_set: the evaluation data with the dense network's outputs; None without data.
        output: name or number of the output by which files are compared with the network; None =
            the one that it is judged by.
        exported: the pruned network as an `onnx.ModelProto`, from which `quantized` was made.
        acceleration: the pruned module on PyTorch's INT8 kernels, with a report of its own, if
            runtime="torch-int8-sparse" was requested; `acceleration.save` writes it.
        missing: results that were requested and could not be made ("int8"), with the reason.
        file_remarks: what `save` has added to the report's warnings and notes about its files; the
            next call takes it out.
        images: calibration images on which `save` compares the files with the network: all of
            them if INT8 was requested, because INT8 files are fitted to them, else a few.
    """

    model: Any
    report: Report
    images: Samples
    steps: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    quantized: Any = None
    evaluation_set: EvaluationSet | None = None
    output: str | int | None = None
    exported: Any = None
    missing: Mapping[str, str] = field(default_factory=dict)
    acceleration: Acceleration | None = None
    file_remarks: list[str] = field(default_factory=list, repr=False, compare=False)

    def after(self, step: str) -> Any:
        """A copy of the network as it was after a step of the recipe."""
        check_arguments(PruneResult.after, locals())
        if step not in self.steps:
            known = ", ".join(self.steps) or "none, for the recipe has a single step"
            raise OptionError(f"no step {step!r}, expected one of: {known}")
        return open_model(self.model).edited(self.steps[step]).model

    @property
    def is_quantized(self) -> bool:
        """Whether INT8 was requested, if it could be made or not."""
        return self.quantized is not None or "int8" in self.missing

    def save(
        self,
        out: str | Path,
        *,
        onnx: bool = False,
        openvino: bool = False,
        int8: bool | None = None,
        overwrite: bool = False,
        progress: ShowProgress | Teller = None,
    ) -> dict[Path, int]:
        """Writes the network, `report.json` and `report.html` into a folder, or nothing.

        A module becomes `model.safetensors`, and `model.pt2` if it came in such a file or had to
        become its traced program when channels left; an ONNX model becomes `model.onnx`, an
        OpenVINO model `model.xml` and `model.bin`. Each file is read back, searched for every zero
        and compared with the network on a few images; the report says what was found.

        Example:
            >>> import tempfile
            >>> import secateur
            >>> from secateur import example
            >>> images = example.calibration()[:64]  # few, to be quick
            >>> result = secateur.prune(example.trained(), images, sparsity=0.5)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     [str(path) for path in result.save(folder)]
            ['model.safetensors', 'report.html', 'report.json']

        Args:
            out: the folder. It is made if it is missing, and has to be empty if it is not.
            onnx: whether to write `model.onnx` of a module too.
            openvino: whether to write `openvino/model.xml` and its `.bin` too.
            int8: whether to write `model-int8.onnx` and, with `openvino`,
                `openvino/model-int8.xml`; of an OpenVINO model `model-int8.xml`. None = if `prune`
                was called with quantize="int8".
            overwrite: whether files of the same names may be replaced in a folder with others.
                What an earlier call has written there of another format is removed, with a warning,
                where the earlier report.json lists it.
            progress: as for `secateur.prune`.

        Returns:
            The size in bytes of each file, by its path in the folder.

        Raises:
            OutputError: the folder is not empty and `overwrite` is not given, or the disk refuses.
            OptionError: INT8 was not requested of `prune`.
            ModelError: the network's own file cannot be written; nothing is then.
            IncompleteError: another format cannot be written; the other files are.
            MissingExtraError: the package for a format is not installed.
        """
        check_arguments(PruneResult.save, locals())
        int8 = self.is_quantized if int8 is None else int8
        if int8 and not self.is_quantized:
            raise OptionError(
                "int8 is True, but prune made no INT8 network, expected one: call prune with "
                'quantize="int8"'
            )
        network, as_program = open_model(self.model), is_program(self.model)
        names = file_names(network.suffix, as_program, onnx=onnx, openvino=openvino, int8=int8)
        check_folder(Path(out), [*names, REPORT, PAGE], overwrite=overwrite)
        earlier = _earlier_files(Path(out)) if overwrite else {}
        with (
            telling(progress) as teller,
            one_first_run(),
            output_folder(Path(out), overwrite=overwrite) as folder,
        ):
            missing = _write(self, network, folder, names, teller)
            self.report.save(folder / REPORT)
            save_page(self.report, folder / PAGE)
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            written = {path.relative_to(folder): path.stat().st_size for path in files}
        if overwrite:
            _clear_away(Path(out), earlier, self.report)
        if missing:
            reasons = "; ".join(f"{name} was not written: {why}" for name, why in missing.items())
            raise IncompleteError(
                f"{reasons}; the pruned network and the other files are in {out}", written
            )
        return written


def file_names(own: str, is_program: bool, *, onnx: bool, openvino: bool, int8: bool) -> list[str]:
    """The files of a network, beside its report; the first one must not fail.

    Args:
        own: the ending of the file that the network itself is saved as.
        is_program: whether it came in a .pt2 file, or is the traced program of a module.
        onnx, openvino, int8: as for `PruneResult.save`.

    Raises:
        OptionError: an OpenVINO file is to be written in another format.
    """
    if own == ".xml" and (onnx or openvino):
        raise OptionError(
            "the network is an OpenVINO file, expected no other format than that for it: leave out "
            "ONNX and OpenVINO (--onnx, --openvino)"
        )
    if own == ".xml":
        return [OWN_IR, *[OWN_INT8_IR] * int8]
    names = list(dict.fromkeys([f"model{own}", *[ONNX] * onnx]))
    names += [PROGRAM] * is_program + [INT8] * int8 + [IR] * openvino
    return names + [INT8_IR] * (openvino and int8)


def _write(
    result: PruneResult, network: Frontend, folder: Path, names: Sequence[str], teller: Teller
) -> dict[str, str]:
    """Writes the network's files.

    Returns:
        Which of those after the first could not be written, and why; the others are no worse.
    """
    report, missing = result.report, dict[str, str]()
    _forget_files(result)
    writers = _writers(result, network, folder)
    for name in names:
        teller.step(f"writing and checking {name}")
        try:
            report.exports[name] = writers[name](folder / name)
        except (ModelError, MemoryError) as error:
            if name == names[0]:
                raise
            missing[name] = str(error) or "there is not enough memory"
            _remark(result, report.warnings, f"{name} was not written: {missing[name]}")
            _remove(folder / name)
        else:
            if told := difference_warning(name, report.exports[name]):
                _remark(result, report.warnings, told)
                warnings.warn(told, SecateurWarning, stacklevel=3)
    if PROGRAM in names and WEIGHTS in names and report.channels:
        _remark(result, report.notes, _OF_PROGRAM)
    return missing


def _remark(result: PruneResult, remarks: list[str], text: str) -> None:
    """Adds what is to be said of a file to the report's warnings or notes."""
    remarks.append(text)
    result.file_remarks.append(text)


def _forget_files(result: PruneResult) -> None:
    """Takes out of a report what it says of files that were written before, elsewhere."""
    report = result.report
    report.exports.clear()
    for name in (IR, INT8_IR):
        report.evaluation.pop(name, None)
    for remarks in (report.warnings, report.notes):
        remarks[:] = [remark for remark in remarks if remark not in result.file_remarks]
    result.file_remarks.clear()


def _earlier_files(folder: Path) -> dict[str, Any]:
    """The networks' files that the report in a folder lists, with the bytes that they have."""
    try:
        exports = Report.load(folder / REPORT).exports
    except DataError:
        return {}
    return {name: facts.get("bytes") for name, facts in exports.items() if name in _FILES}


def _clear_away(folder: Path, earlier: Mapping[str, Any], report: Report) -> None:
    """Removes the files of an earlier pruning that were not replaced, and tells of all such files.

    A file that is not listed, or has another size than its report says, is somebody else's.
    """
    for name in (name for name in _FILES if name not in report.exports):
        files = [path for path in _parts_of(folder / name) if path.is_file()]
        if not (folder / name).is_file():
            continue
        listed = sum(path.stat().st_size for path in files) == earlier.get(name)
        clear_away(files, listed=listed, earlier="an earlier pruning", written="the network")


def _parts_of(path: Path) -> list[Path]:
    """A network's file and the one beside it that holds its weights."""
    return [path, path.with_suffix(".bin") if path.suffix == ".xml" else Path(f"{path}.data")]


def _writers(
    result: PruneResult, network: Frontend, folder: Path
) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """How each file is written, by its name; each gives what was found out about it."""
    images, parameters = result.images, _pruned_parameters(result.report, network)

    def exported() -> Any:
        if (folder / ONNX).exists():
            return open_model(folder / ONNX).model
        return network.to_onnx(images) if result.exported is None else result.exported

    def write_int8(path: Path) -> dict[str, Any]:
        if result.quantized is None:
            raise ModelError(result.missing["int8"])
        return save_int8(result.quantized, path, images, exported(), output=output)

    def write_int8_ir(path: Path) -> dict[str, Any]:
        if result.quantized is None:
            raise ModelError(result.missing["int8"])
        return save_int8_ir(result.quantized, path, images, result.model, output=output)

    output = result.output
    write_onnx = ONNX_WRITERS.get(network.suffix, save_onnx)
    return {
        WEIGHTS: lambda path: save_safetensors(
            result.model, path, parameters, shrunk=bool(result.report.channels)
        ),
        PROGRAM: lambda path: (
            save_smaller(result.model, path, images)
            if result.report.channels
            else save_program(result.model, path)
        ),
        ONNX: lambda path: write_onnx(result.model, path, images, parameters, output=output),
        OWN_IR: lambda path: save_ir(result.model, path, images, parameters, output=output),
        INT8: write_int8,
        OWN_INT8_IR: write_int8_ir,
        IR: lambda path: _write_openvino(result, exported(), path, None),
        INT8_IR: lambda path: _write_openvino(result, exported(), path, images),
    }


def _remove(path: Path) -> None:
    """Removes what is there of a file that could not be written, with what lies beside it."""
    remove_all([path, *_parts_of(path), *path.parent.glob(f"{path.name}*")])


def _write_openvino(
    result: PruneResult, pruned: Any, path: Path, calibration: Samples | None
) -> dict[str, Any]:
    """Writes an IR file, in INT8 where there are images to fit it to, and evaluates it."""
    check = save_openvino(pruned, path, result.images, int8=calibration, output=result.output)
    if calibration is not None and (note := recurrent_note(read_ir(path).model, INT8_IR)):
        _remark(result, result.report.notes, note)
    if result.evaluation_set is not None:
        name = INT8_IR if calibration is not None else IR
        result.report.evaluation[name] = result.evaluation_set.evaluate(read_ir(path))
    return check


def difference_warning(name: str, check: Mapping[str, Any]) -> str | None:
    """What to warn of if a file does not give what the network gives; None if it does."""
    if name in (INT8, INT8_IR, OWN_INT8_IR) and far_off(check):
        return (
            f"{name} is far from the network in float32: the error of its outputs is "
            f"{percent_text(check['output_error'])} of their variance: evaluate it before you "
            "ship it, or leave out INT8"
        )
    if name in (ONNX, OWN_IR, IR) and differs(check):
        return (
            f"{name} differs from the network's outputs by {check['largest_difference']:.2g}"
            ", more than rounding would: evaluate it before you ship it"
        )
    return None


def _pruned_parameters(report: Report, network: Frontend) -> list[str]:
    tensors = network.tensors()
    names = (layer.name for layer in report.layers)
    return [name if name in tensors else f"{name}.weight" for name in names]
