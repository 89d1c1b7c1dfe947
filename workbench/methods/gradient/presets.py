"""The family's named methods: the one loop with the settings of each paper, as far as they are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workbench.methods.gradient.method import GradientMethod
from workbench.methods.method import register


@register
@dataclass(frozen=True)
class AdaRound(GradientMethod):
    """Learn for each weight whether it goes up or down, on the layer's own output.

    Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020 (arXiv 2004.10568), with the
    settings of BRECQ's code: rectified sigmoid, beta 20 to 2, 20 % warm-up, Adam. Derived: the full batch through the Gram
    matrix, the regularizer in units of the start's loss, the learning rate scaled by the steps, the start, and the float
    model's inputs: the paper's asymmetric reconstruction (``inputs=quantized``) lowers each layer's own loss, and on the
    transformers tried here (tiny-gemma3, MiniLM) the whole model is worse for it.
    """

    word: ClassVar[str] = "adaround"
    title: ClassVar[str] = "AdaRound"
    summary: ClassVar[str] = "learns up or down for each weight, on the layer's output"


@register
@dataclass(frozen=True)
class Brecq(GradientMethod):
    """AdaRound's rounding, learned for all layers of a block together on the block's output.

    Li et al., "BRECQ", ICLR 2021 (arXiv 2102.05426); ``loss=fisher`` weighs the output by its squared gradients. Derived:
    as in ``AdaRound``.
    """

    word: ClassVar[str] = "brecq"
    title: ClassVar[str] = "BRECQ"
    summary: ClassVar[str] = "learns up or down for all layers of a block, on the block's output"

    scope: str = "block"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    inputs: str = "quantized"


@register
@dataclass(frozen=True)
class QDrop(GradientMethod):
    """BRECQ with inputs (and coded activations) that are randomly left in float, element by element, half of them.

    Wei et al., "QDrop", ICLR 2022 (arXiv 2203.05740). Derived: as in ``AdaRound``; on one layer the mixture's expected
    loss is minimised instead of drawing it.
    """

    word: ClassVar[str] = "qdrop"
    title: ClassVar[str] = "QDrop"
    summary: ClassVar[str] = "BRECQ with inputs randomly left in float"

    scope: str = "block"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    inputs: str = "qdrop"


@register
@dataclass(frozen=True)
class FlexRound(GradientMethod):
    """Learn a divisor for each weight and each row before rounding, and the scale.

    Lee et al., "FlexRound", ICML 2023 (arXiv 2306.00317). Derived: logarithms of the divisors, learning rates, batch.
    """

    word: ClassVar[str] = "flexround"
    title: ClassVar[str] = "FlexRound"
    summary: ClassVar[str] = "learns a divisor for each weight before rounding, and the scale"

    variable: str = "divide"
    freedom: str = "range"
    learn_scale: bool = True
    decay: bool = True
    batch: str = "64"
    scope: str = "block"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    inputs: str = "quantized"


@register
@dataclass(frozen=True)
class AutoRound(GradientMethod):
    """Learn an offset within half a code before rounding, and the scale, by signed gradient descent.

    Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent", 2023 (arXiv 2309.05516), and its code: 200 steps
    at a rate of 1 / steps, falling linearly to 0. Derived: the scale is a factor of the start's instead of a clip of the
    range within [0, 1], and moves slower; the size of a layer's mini-batch; the start.
    """

    word: ClassVar[str] = "autoround"
    title: ClassVar[str] = "AutoRound"
    summary: ClassVar[str] = "learns an offset before rounding by signed gradients"

    variable: str = "offset"
    learn_scale: bool = True
    optimizer: str = "signsgd"
    decay: bool = True
    scale_rate: float = 0.1
    batch: str = "64"
    scope: str = "block"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    inputs: str = "quantized"


@register
@dataclass(frozen=True)
class Nupes(GradientMethod):
    """Learn codes over the whole grid, the exponents and the scales together, for all layers of a block.

    After Yvinec et al., "NUPES: Non-Uniform Post-Training Quantization via Power Exponent Search" (arXiv 2308.05600):
    codes over the entire quantized space and the exponent learned with them. Derived, because the paper's equations could
    not be read: the soft code, the decoder's gradient (0 at code 0), learning rates, the start at the best of searched
    exponents and clips (the uniform grid among them), the block's output as the loss, inputs mixed as QDrop does (on
    tiny-gemma3 whole blocks and mixed inputs lose less held-out perplexity than single layers or quantized inputs alone),
    and signed gradients with falling rates, a strong regularizer and sharp codes: a block's mini-batches are few and noisy,
    Adam makes full steps of that noise, and codes that end soft lose what they gained when they are rounded.
    """

    word: ClassVar[str] = "nupes"
    title: ClassVar[str] = "NUPES"
    summary: ClassVar[str] = "learns codes over the whole grid, exponents and scales together, on the block's output"

    variable: str = "free"
    freedom: str = "range"
    learn_scale: bool = True
    learn_exponent: bool = True
    optimizer: str = "signsgd"
    decay: bool = True
    regularizer: float = 1000.0
    temperature_end: float = 80.0
    scope: str = "block"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    inputs: str = "qdrop"
