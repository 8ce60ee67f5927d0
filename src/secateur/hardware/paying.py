"""What pays on the runtime that a network is pruned for: the pattern, and the layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from secateur.hardware.layer_facts import LayerFacts
from secateur.hardware.runtimes import BY_KEY
from secateur.network.layers import Layer
from secateur.support.wording import counted

MEASURED = ("onnxruntime", "openvino", "torch")  # whole networks are measured there, in turns
INT8_SPARSE = "torch-int8-sparse"
CUDA_SPARSE = "torch-cuda-2:4"
ACCELERATED = (INT8_SPARSE, CUDA_SPARSE)  # which `secateur.accelerate` makes modules for


def not_paying(layers: Sequence[Layer], runtime: str) -> dict[str, str]:
    """The layers whose zeros would bring nothing on a runtime, by name, with the reason."""
    reasons = {
        layer.name: BY_KEY[runtime].fits(LayerFacts.of(layer, None, pruned=False))
        for layer in layers
        if layer.obstacle is None and layer.protected is None
    }
    return {name: reason for name, reason in reasons.items() if reason}


def pays_nowhere(layers: Sequence[Layer], runtime: str) -> str:
    """Why zeros would bring nothing on a runtime; empty where they would in some layer."""
    reasons = not_paying(layers, runtime)
    usable = [of for of in layers if of.obstacle is None and of.protected is None]
    return next(iter(reasons.values()), "") if len(reasons) == len(usable) else ""


def pattern_note(runtime: str, pattern: str, *, was_chosen: bool) -> str:
    """Which pattern a network gets for a runtime, and why."""
    of = BY_KEY[runtime]
    if pattern == of.pattern:
        how = "chosen for it" if was_chosen else "as asked for"
        return f"{runtime}: pattern {pattern}, {how}; {of.feature}; {of.prepared}"
    if of.pattern == "channels":
        return (
            f"{runtime}: zeros (pattern {pattern}) make nothing faster there; removed channels do: "
            "leave out pattern and sparsity, and ask for max_latency, max_macs or max_bytes"
        )
    return f"{runtime}: pattern {pattern}, as asked for; what pays there is {of.pattern}"


def layers_note(runtime: str, reasons: Mapping[str, str]) -> str:
    """Which layers stay dense because zeros in them bring nothing on a runtime."""
    common = "; ".join(
        f"{reason} ({counted(count, 'layer')})"
        for reason, count in Counter(reasons.values()).most_common(3)
    )
    more = ", and others" if len({*reasons.values()}) > 3 else ""
    return (
        f"{runtime}: {counted(len(reasons), 'layer')} left dense, for zeros bring nothing there: "
        f"{common}{more}; name them in include= to prune them too"
    )
