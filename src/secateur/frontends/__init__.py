"""Front-ends turn a model into a `secateur.network.graph.Graph`, and write weights back.

There is a folder for each kind of model; `open` is the one place that asks which it is.
"""

from secateur.frontends.loading import open, open_to_run
from secateur.frontends.protocol import Frontend, Runnable, asked_or_own

__all__ = ["Frontend", "Runnable", "asked_or_own", "open", "open_to_run"]
