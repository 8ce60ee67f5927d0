"""What a file is that is given as a network or its weights, told by its first bytes and its name.

Nothing is unpickled, parsed or run here, so any file may be asked about.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of file.

    Attributes:
        what: it is, with an article.
        way_out: what to do with such a file; `{path}` stands for its path.
    """

    what: str
    way_out: str

    def message(self, path: str | Path, expected: str) -> str:
        """The sentence that refuses a file of this kind where something else is expected."""
        way_out = self.way_out.replace("{path}", str(path))
        return f"{path} is {self.what}, expected {expected}: {way_out}"


# what Secateur can read
ONNX = FileKind(
    what="an ONNX file, which is a network with its weights",
    way_out="pass it in the place of the network",
)
CHECKPOINT = FileKind(
    what="a PyTorch checkpoint, which holds weights only",
    way_out="pass net.py:build --weights {path}, where build returns the network without weights",
)
SAFETENSORS = FileKind(
    what="a safetensors file, which holds weights only", way_out=CHECKPOINT.way_out
)
PROGRAM = FileKind(
    what="an exported program, which is a network with its weights",
    way_out="pass it in the place of the network",
)
IR = FileKind(
    what="an OpenVINO file, which is a network with its weights",
    way_out="pass it in the place of the network",
)

# what it cannot
LFS_POINTER = FileKind(
    what="a Git LFS pointer, a text in the place of the real file",
    way_out="run git lfs pull in its repository to fetch that",
)
EMPTY = FileKind(
    what="an empty file",
    way_out="copy, download or export it again",
)
WEB_PAGE = FileKind(
    what="a web page, perhaps an error or a login in the place of a download",
    way_out="download the file itself",
)
TORCHSCRIPT = FileKind(
    what="a TorchScript file, whose network cannot be pruned",
    way_out="pass the Python module that it was made from as net.py:build, with weights that "
    "torch.save(torch.jit.load('{path}').state_dict(), 'weights.pt') writes, or export that module "
    "to ONNX",
)
COMPILED = FileKind(
    what="a package of compiled code (AOTInductor)",
    way_out="pass what torch.export.save wrote of the same program, or the Python module",
)
PICKLE = FileKind(
    what="a pickle, which may run any code when it is read and is never unpickled here",
    way_out="pass net.py:build, where build reads it and returns the network, if you trust it",
)
KERAS = FileKind(
    what="an HDF5 file, such as Keras writes",
    way_out="pass an .onnx file: tf2onnx makes one of a Keras model",
)
KERAS_ZIP = FileKind(
    what="a Keras file", way_out="pass an .onnx file: tf2onnx makes one of a Keras model"
)
TENSORFLOW = FileKind(
    what="a TensorFlow model", way_out="pass an .onnx file: tf2onnx makes one of such a model"
)
TFLITE = FileKind(
    what="a TFLite file",
    way_out="pass the .onnx file that it was made from, or what tf2onnx --tflite makes of it",
)
ORT = FileKind(
    what="an ONNX Runtime file (.ort)", way_out="pass the .onnx file that it was made from"
)
ENGINE = FileKind(
    what="a TensorRT engine, which is compiled for one GPU",
    way_out="pass the .onnx file that it was built from, and build an engine of the result",
)
CORE_ML = FileKind(
    what="a Core ML model",
    way_out="pass the PyTorch module or .onnx file that it was made from, and convert the result",
)
GGUF = FileKind(
    what="a GGUF file, which holds the weights of a language model",
    way_out="pass a PyTorch module or an .onnx file with float weights",
)
IR_WEIGHTS = FileKind(
    what="a .bin file that is no PyTorch checkpoint, such as the weights of an OpenVINO file",
    way_out="pass the .xml file beside it, or the PyTorch module that it was made from",
)
PACKED = FileKind(
    what="a file that secateur pack wrote",
    way_out="run secateur unpack {path} -o FILE, and pass that",
)
SHARDS = FileKind(
    what="the index of weights in several files",
    way_out="pass hf:FOLDER with the folder that holds it, or save the weights as one file",
)
ARRAYS = FileKind(
    what="an archive of NumPy arrays",
    way_out="pass it to --data if it holds images",
)
ZIP = FileKind(
    what="a zip archive",
    way_out="unpack it, and pass the file that is in it",
)
TAR = FileKind(
    what="a tar or gzip archive",
    way_out="unpack it, and pass the file that is in it",
)
BROKEN_ZIP = FileKind(
    what="a zip archive without its end, as all of PyTorch's files are zip archives",
    way_out="it was not copied or downloaded whole: do that again",
)
HF_FOLDER = FileKind(
    what="a folder with a Hugging Face model", way_out="pass hf:{path}, or a file in it"
)
FOLDER = FileKind(
    what="a folder",
    way_out="pass a file in it",
)
PYTHON = FileKind(
    what="a Python file",
    way_out="name the function in it that returns the network, such as {path}:build",
)
UNKNOWN = FileKind(
    what="a file that holds no network",
    way_out="pass one of these",
)

_BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/": LFS_POINTER,
    b"\x89HDF\r\n\x1a\n": KERAS,
    b"\x89SPK\r\n\x1a\n": PACKED,
    b"GGUF": GGUF,
    b"ftrt": ENGINE,
    b"ptrt": ENGINE,
    b"\x1f\x8b": TAR,
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": CHECKPOINT,  # torch.save before PyTorch 1.6
    **{bytes((0x80, protocol)): PICKLE for protocol in range(2, 6)},
}
_FLATBUFFERS = {b"TFL3": TFLITE, b"ORTM": ORT}  # from the fifth byte on
_SUFFIXES = {
    ".onnx": ONNX,
    ".safetensors": SAFETENSORS,
    ".pt": CHECKPOINT,
    ".pth": CHECKPOINT,
    ".ckpt": CHECKPOINT,
    ".pt2": PROGRAM,
    ".xml": IR,
    ".bin": IR_WEIGHTS,
    ".h5": KERAS,
    ".hdf5": KERAS,
    ".keras": KERAS_ZIP,
    ".tflite": TFLITE,
    ".ort": ORT,
    ".engine": ENGINE,
    ".plan": ENGINE,
    ".trt": ENGINE,
    ".mlmodel": CORE_ML,
    ".mlpackage": CORE_ML,
    ".pb": TENSORFLOW,
    ".gguf": GGUF,
    ".py": PYTHON,
    ".zip": BROKEN_ZIP,
    ".npy": ARRAYS,
}
_BEGINNING = 512  # bytes


def kind_of(path: str | Path) -> FileKind:
    """The kind of a file or folder that is there.

    What a file holds counts for more than how its name ends. A file of a kind that Secateur reads
    may still be broken.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    with path.open("rb") as file:
        head = file.read(_BEGINNING)
    for beginning, kind in _BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    return kind_of_head(head, path.stat().st_size) or kind_named(path) or UNKNOWN


def kind_of_head(head: bytes, size: int) -> FileKind | None:
    """The kind that a beginning tells of a file of so many bytes, by rules of its own."""
    if not head:
        return EMPTY
    if head[257:262] == b"ustar":
        return TAR
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return WEB_PAGE
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return SAFETENSORS
    return _FLATBUFFERS.get(head[4:8])


def kind_named(path: Path) -> FileKind | None:
    """The kind that a file's name tells, there or not; None of a name that tells none."""
    if path.name.lower().endswith(".index.json"):
        return SHARDS
    return _SUFFIXES.get(path.suffix.lower())


def _folder(path: Path) -> FileKind:
    if path.suffix.lower() == ".mlpackage":
        return CORE_ML
    if (path / "saved_model.pb").is_file():
        return TENSORFLOW
    return HF_FOLDER if (path / "config.json").is_file() else FOLDER


def _zip(path: Path) -> FileKind:
    """The kind of a zip archive, by the names in it; PyTorch's lie in a folder of any name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return BROKEN_ZIP
    inner = {name.partition("/")[2] for name in names}
    if any(name.startswith("data/aotinductor/") for name in inner):
        return COMPILED
    if "models/model.json" in inner or "serialized_exported_program.json" in names:
        return PROGRAM
    if "constants.pkl" in inner:
        return TORCHSCRIPT
    if "data.pkl" in inner:
        return CHECKPOINT
    if "model.weights.h5" in names:
        return KERAS_ZIP
    return ARRAYS if names and all(name.endswith(".npy") for name in names) else ZIP
