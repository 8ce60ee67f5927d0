"""Images or other samples, read and ready for the network."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Int
from torch import Tensor

from secateur.data.streams import (
    few_classes,
)
from secateur.network.samples import Samples

FEW_IMAGES = 32  # below this a warning: the statistics of most layers are too thin
MAX_IMAGES = 1000


@dataclass(frozen=True)
class Images:
    """Images ready for the network.

    Attributes:
        samples: inputs of the network: of floats float32.
        source: where they come from, for the report.
        labels: class numbers, if the source has them and they were requested.
        notes: facts for the report, such as how the images were chosen.
        synthetic: generator and seed of synthetic images; None for real ones.
        classes: the class folders that the labels come from, in the order of their numbers.
        warnings: possible mistakes in the images; the report begins with these.
    """

    samples: Samples
    source: str
    labels: Int[Tensor, " batch"] | None = None
    notes: list[str] = field(default_factory=list)
    synthetic: str | None = None
    classes: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)

    @property
    def tensor(self) -> Tensor:
        """The images as one tensor, for a network of one input."""
        return self.samples.only()

    def warnings_for(self, outputs: int) -> list[str]:
        """The warnings, and one if the network has more outputs than there are class folders."""
        return [*self.warnings, *few_classes(self.source, self.classes, outputs)]
