"""Each kind of source that `secateur.data.sources` lists, read as a stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from secateur.data.arrays import (
    PIXELS,
    as_inputs,
    as_tensor,
    check_are_batches,
    check_kind,
    check_labels,
    is_pair,
    own_memory,
    rows_of,
)
from secateur.data.batches import IMAGE_KEYS, LABEL_KEYS, class_numbers, in_words, read_batch
from secateur.data.folders import folder_labels, image_files, open_image
from secateur.data.fractals import fractal_images
from secateur.data.images import Images
from secateur.data.iterating import Replay, gives_rows, guarded, is_indexed
from secateur.data.named import Named, named, whole_numbers
from secateur.data.noise import gaussian_noise, pink_noise
from secateur.data.preprocess import Preprocess, Transform, apply
from secateur.data.streams import (
    BATCH,
    ImageStream,
    Part,
    check_shapes,
    joined,
)
from secateur.data.text import ModelText, Text
from secateur.data.text_sources import SYNTHETIC as SYNTHETIC_TEXT
from secateur.data.text_sources import are_texts, followed, text_stream
from secateur.errors import DataError
from secateur.network.samples import Signature, as_samples
from secateur.support.choices import did_you_mean
from secateur.support.import_string import call, is_reference
from secateur.support.model_files import steady
from secateur.support.wording import counted

_NO_LABELS = "no labels"  # how the warning about unused ones begins
_SYNTHETIC = {
    "fractal": ("fractal images", fractal_images),
    "pink": ("1/f noise", pink_noise),
    "gaussian": ("Gaussian noise", gaussian_noise),
}


@dataclass
class Reader:
    """Reads a source; attributes as the arguments of `secateur.data.sources.open_images`."""

    preprocess: Transform | None
    max_images: int | None
    seed: int
    labelled: bool
    takes: Signature | None = None

    def read(self, data: Any, name: str = "") -> ImageStream:
        """Opens a source of any kind; `name` is what messages call it, where it has a name."""
        if isinstance(data, ImageStream):
            return data
        if isinstance(data, Images):
            return _stream_of(data)
        if isinstance(self.preprocess, ModelText):
            name, data = name or (data if isinstance(data, str) else ""), followed(data)
            if not are_texts(data):
                return replace(self, preprocess=None).read(data, name)
        if isinstance(self.preprocess, Text):
            return text_stream(
                data,
                self.preprocess,
                self.choice,
                seed=self.seed,
                labelled=self.labelled,
                takes=self.takes or Signature(),
            )
        if isinstance(data, str | Path):
            return self._path(str(data))
        return self._arrays(data, name) or self._iterable(data, name or type(data).__name__)

    def _arrays(self, data: Any, name: str) -> ImageStream | None:
        """What is in memory as a whole; None where it is something else."""
        if (found := named(data, self.takes, whole=True)) is not None:
            return self._named(found, name or "tensors")
        if isinstance(data, np.ndarray | Tensor):
            return self._array(as_tensor(data), None, name or "tensor")
        if is_pair(data):
            labels = as_tensor(data[1]) if self.labelled else None
            return self._array(as_tensor(data[0]), labels, name or "tensors")
        return None

    def _iterable(self, data: Any, name: str) -> ImageStream:
        """What gives batches or samples."""
        if isinstance(data, Mapping):
            return self._mapping(data, name)
        check_are_batches(data, name)
        if is_indexed(data):
            return self._batches(lambda: (data[i] for i in range(len(data))), name, single=True)
        if isinstance(data, torch.utils.data.IterableDataset):
            return self._batches(lambda: data, name, single=True)
        if isinstance(data, Iterable):
            again = Replay(data) if isinstance(data, Iterator) else data
            return self._batches(lambda: again, name, single=gives_rows(data))
        raise self._unknown(data)

    def _mapping(self, data: Mapping[Any, Any], name: str) -> ImageStream:
        """Images under one of their usual names, or that of the network's input."""
        if any(self._is_taken(key) for key in data):
            batch = read_batch(data, name)
            if isinstance(batch.images, Tensor | np.ndarray):
                labels = batch.labels if self.labelled else None
                return self._array(as_tensor(batch.images), labels, name)
        raise self._unknown(data)

    def _is_taken(self, name: Any) -> bool:
        """Whether the network takes an input of this name, or any network takes images so."""
        return name in IMAGE_KEYS or (self.takes is not None and name in self.takes.names)

    def _unknown(self, data: Any) -> DataError:
        if isinstance(data, Mapping) and self.takes is not None:
            wanted = ", ".join(self.takes.required or self.takes.names[:6])
            return DataError(
                f"the data hold {', '.join(map(str, data)) or 'nothing'}, the network takes "
                f"{wanted}, expected tensors by these names: rename them"
            )
        return DataError(
            f"the data are a {type(data).__name__}, expected a float tensor (N, C, H, W), "
            "batches, a folder of images, an .npz file, file.py:callable or fractal:300: pass one "
            "of these"
        )

    def _path(self, text: str) -> ImageStream:
        path = Path(text)
        try:
            path.exists()
        except OSError as error:  # a name that is too long, for one
            raise DataError(f"{text[:60]}... is not a path ({error.strerror}): check it") from error
        kind, colon, number = text.partition(":")
        if not path.exists() and colon and kind in _SYNTHETIC:
            return self._synthetic(kind, number)
        if not path.exists() and colon and kind == SYNTHETIC_TEXT:
            raise DataError(
                f"{text} has no tokenizer to make texts with, expected that of the network: pass "
                "preprocess=secateur.Text(tokenizer=...), or --tokenizer"
            )
        if path.is_dir():
            return self._folder(path)
        if path.is_file() and path.suffix == ".npz":
            return self._npz(path)
        if not path.exists() and is_reference(text):
            return self.read(call(text, DataError), name=text)
        if not path.exists():
            made = [f"{known}:{number}" for known in _SYNTHETIC if number.isdecimal()]
            raise DataError(
                f"no such file or folder: {text}, expected images: check the path "
                f"(a function is written file.py:callable){did_you_mean(path.name, made)}"
            )
        raise DataError(
            f"{text} is a single file, expected a folder of images, an .npz file or "
            "file.py:callable: pass the folder that holds it, or for text a tokenizer "
            "(preprocess=secateur.Text(...), or --tokenizer)"
        )

    def _synthetic(self, kind: str, number: str) -> ImageStream:
        """Made images, as inputs of the network; see `fractals` and `noise` in this folder."""
        if not number.isdecimal() or int(number) < 1:
            raise DataError(f"got {kind}:{number}, expected how many to make, such as {kind}:300")
        shape = self.preprocess.shape if isinstance(self.preprocess, Preprocess) else None
        if shape is None or not isinstance(self.preprocess, Preprocess):
            raise DataError(
                f"{kind}:{number} has no size, expected the network's preprocessing: pass "
                "Preprocess(size=..., mean=..., std=...), or --size, --mean and --std"
            )
        count = min(int(number), self.max_images or int(number))
        what, make = _SYNTHETIC[kind]
        height, width = shape
        channels = self.preprocess.channels
        images = make(count, size=max(shape), channels=channels, seed=self.seed)
        top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
        images = images[..., top : top + height, left : left + width].contiguous()
        if images.dtype == torch.uint8:  # noise comes as inputs
            images = self.preprocess.normalise(images)
        notes = [f"{count} of {number}, the most allowed"] if count < int(number) else []
        made = f"{count} {what}, seed {self.seed}"
        return _stream_of(
            Images(as_samples(images), f"{kind}:{number}", notes=notes, synthetic=made)
        )

    def _npz(self, path: Path) -> ImageStream:
        try:
            with (
                steady(path, DataError),
                path.open("rb") as file,
                np.load(file, allow_pickle=False) as held,
            ):
                arrays = {key: held[key] for key in held.files}
        except DataError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds
            raise DataError(f"{path} is not a readable .npz file: {error}") from error
        if (found := named(arrays, self.takes or Signature())) is not None:
            return self._named(found, str(path))
        own = () if self.takes is None else self.takes.required
        only = next(iter(arrays.values())) if len(arrays) == 1 else None
        images = next((arrays[name] for name in ("images", *own) if name in arrays), only)
        if images is None:
            raise DataError(
                f"{path} holds the arrays {', '.join(arrays) or 'none'}, expected "
                f"{self._arrays_named}"
            )
        labels = arrays.get("labels") if self.labelled else None
        tensor = as_tensor(images)
        return self._array(tensor, None if labels is None else as_tensor(labels), str(path))

    @property
    def _arrays_named(self) -> str:
        """What an .npz file has to hold for the network."""
        names = () if self.takes is None else (self.takes.required or self.takes.names[:1])
        shown = ", ".join(f"{name}=..." for name in names)
        if len(names) > 1:
            return f"the network's inputs ({', '.join(names)}): save them with np.savez({shown})"
        or_own = f", or the network's input, {names[0]}" if names else ""
        return (
            f"one named 'images' (and, for evaluation, 'labels'){or_own}: save it with "
            f"np.savez({shown or 'images=...'})"
        )

    def _named(self, found: Named, name: str) -> ImageStream:
        """Inputs by name, in memory."""
        samples = found.samples(
            name, lambda value: self._pixels(value, name), masked_by=self._masked_by
        )
        if not len(samples):
            raise DataError(f"{name} holds no samples, expected at least one: add some")
        labels = self._labels(found, len(samples))
        warnings = self._no_labels(found, name) if labels is None else []
        rows, notes = self.choice(len(samples))
        numbers = None if labels is None else labels[rows]
        part = Part(name, samples.select(rows) if notes else samples, numbers)
        return ImageStream(
            source=name, parts=lambda: [part], notes=notes, warnings=warnings, constant=True
        )

    def _no_labels(self, found: Named, name: str) -> list[str]:
        """A warning where what came with some inputs may have been meant as labels."""
        suspects = [
            value
            for other in found.others
            for key, value in (other if isinstance(other, Mapping) else {"label": other}).items()
            if key in LABEL_KEYS and value is not None
        ]
        if not self.labelled or not suspects:
            return []
        return [
            f"{_NO_LABELS} of {name} were used: beside the inputs it gives "
            f"{' and '.join(map(in_words, suspects))}, expected one class number per sample"
        ]

    @property
    def _masked_by(self) -> str:
        return (self.takes or Signature()).masked_by

    def _pixels(self, value: Any, name: str) -> Tensor:
        """Inputs of PIL images or of pixels."""
        if isinstance(value, list):
            return self._preprocessed(value, name)
        return as_inputs(value, self.preprocess, name)

    def _labels(self, found: Named, count: int) -> Tensor | None:
        """The class numbers that came with some inputs, if they are asked for."""
        numbers = (class_numbers(of, count) for of in found.others if self.labelled)
        return next((of for of in numbers if of is not None), None)

    def _array(self, images: Tensor, labels: Tensor | None, name: str) -> ImageStream:
        """An array in memory; bytes become inputs a few at a time."""
        empty = len(images) > 0 and images.numel() == 0
        if images.dim() < 2 or images.is_complex() or empty:
            raise DataError(
                f"{name} has shape {tuple(images.shape)}, expected a batch such as (N, C, H, W)"
            )
        check_labels(images, labels, name)
        if whole_numbers(images):
            return self._named(Named({"0": images}, [labels] * (labels is not None)), name)
        check_kind(images, self.preprocess, name)
        rows, notes = self.choice(len(images))
        numbers = None if labels is None else labels.long()

        def parts() -> Iterator[Part]:
            for chosen in rows.split(BATCH) if len(rows) else ():
                low, high = int(chosen[0]), int(chosen[-1]) + 1
                at = slice(low, high) if high - low == len(chosen) else chosen  # a slice is no copy
                inputs = as_inputs(rows_of(images, at), self.preprocess, name)
                yield Part(name, as_samples(inputs), None if numbers is None else numbers[at])

        return ImageStream(
            source=name,
            parts=parts,
            notes=notes,
            warnings=self._unscaled() if images.dtype in PIXELS else [],
            constant=images.is_floating_point(),
        )

    def _batches(
        self, batches: Callable[[], Iterable], name: str, single: bool = False
    ) -> ImageStream:
        """Batches, or single samples, that a loader gives at each call."""
        notes: list[str] = []
        warnings: list[str] = []

        def parts() -> Iterator[Part]:
            count, index = 0, -1
            for index, batch in enumerate(guarded(batches, name)):
                part = self._part(batch, f"batch {index}", name, single, warnings)
                rest = len(part) if self.max_images is None else self.max_images - count
                yield part[:rest]
                count += len(part[:rest])
                if count == self.max_images:
                    _add(notes, f"the first {counted(count, 'image')} of {name}")
                    return
            if index < 0:
                raise DataError(f"{name} gives no batches, expected at least one: check its length")

        return ImageStream(source=name, parts=parts, notes=notes, warnings=warnings)

    def _part(self, batch: Any, name: str, source: str, single: bool, warnings: list[str]) -> Part:
        several = self._several(batch, source, single)
        if several is not None:
            return replace(several, name=name)
        found = read_batch(batch, source, single=single)
        if self.labelled and found.unused and not any(map(_is_about_labels, warnings)):
            warnings.append(
                f"{_NO_LABELS} of {source} were used: beside the images it gives {found.unused}, "
                "expected one class number per image, second in a tuple or under 'label'"
            )
        if isinstance(found.images, list):
            _add(warnings, *self._unscaled())
            images = self._preprocessed(found.images, source)
        else:
            array = as_tensor(found.images)
            if array.dtype in PIXELS:
                _add(warnings, *self._unscaled())
            tokens = whole_numbers(array)
            inputs = array if tokens else as_inputs(array, self.preprocess, source)
            images = own_memory(inputs, array)
        labels = found.labels if self.labelled else None
        return Part(name, as_samples(images), None if labels is None else labels.clone())

    def _several(self, batch: Any, source: str, single: bool) -> Part | None:
        """A batch or a sample of inputs by name, or a list of samples; None where it is none."""
        found = named(batch, self.takes or Signature())
        if found is None:
            is_list = isinstance(batch, list) and batch and isinstance(batch[0], Mapping)
            parts = [self._several(of, source, True) for of in batch] if is_list else [None]
            return joined([of for of in parts if of]) if all(parts) else None
        samples = found.samples(
            source,
            lambda value: self._pixels(value, source),
            single=single,
            masked_by=self._masked_by,
        )
        labels = self._labels(found, len(samples))
        return Part(source, samples.map(Tensor.clone), labels)

    def _preprocessed(self, images: Iterable[Image.Image], name: str) -> Tensor:
        preprocess = self.preprocess or Preprocess()
        parts = [
            Part(name, as_samples(apply(preprocess, image, f"an image of {name}")[None]))
            for image in images
        ]
        for part in parts:
            check_shapes(part, parts[0])
        return joined(parts).samples.only()

    def _folder(self, folder: Path) -> ImageStream:
        files = image_files(folder)
        labels, classes, warnings = None, (), self._unscaled()
        if self.labelled:
            labels, classes, more = folder_labels(folder, files)
            warnings += more
        rows, notes = self.choice(len(files))
        preprocess = self.preprocess or Preprocess()

        def parts() -> Iterator[Part]:
            for row in rows.tolist():
                image = apply(preprocess, open_image(files[row]), str(files[row]))
                number = None if labels is None else labels[row : row + 1]
                yield Part(str(files[row]), as_samples(image[None]), number)

        return ImageStream(
            source=str(folder), parts=parts, notes=notes, warnings=warnings, classes=classes
        )

    def _unscaled(self) -> list[str]:
        """A warning where nobody has said what mean and spread the network wants."""
        how = Preprocess() if self.preprocess is None else self.preprocess
        if not isinstance(how, Preprocess) or how.mean is not None or how.std is not None:
            return []
        return [
            "pixels are fed in 0..1, for no mean and std were given: pass --mean and --std "
            "(Preprocess(mean=..., std=...)) as in the network's training, 0 and 1 if it had none"
        ]

    def choice(self, count: int) -> tuple[Int[Tensor, " chosen"], list[str]]:
        """Which of so many images are used, and a note if not all are."""
        if self.max_images is None or count <= self.max_images:
            return torch.arange(count), []
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(count, generator=generator)[: self.max_images].sort().values
        return chosen, [
            f"{self.max_images} of {counted(count, 'image')}, chosen with seed {self.seed}"
        ]


def _stream_of(images: Images) -> ImageStream:
    """Images at hand, batch by batch."""
    return ImageStream(
        source=images.source,
        parts=lambda: [Part(images.source, images.samples, images.labels)],
        notes=images.notes,
        warnings=images.warnings,
        synthetic=images.synthetic,
        classes=images.classes,
        constant=True,
    )


def _is_about_labels(warning: str) -> bool:
    return warning.startswith(_NO_LABELS)


def _add(remarks: list[str], *new: str) -> None:
    """Each remark once, however often a source is read."""
    remarks += [remark for remark in new if remark not in remarks]
