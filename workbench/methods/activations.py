"""Fake quantization of a layer's inputs on torch tensors: what learning through activations, and evaluation, need.

handles = attach(block, {"mlp.down_proj": "int8@token", "attn.q_proj": "uniform:bits=4"}, ranges)
...                                        # every forward pass now sees coded inputs
handles.remove()
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.calibration.ranges import RangeObserver, RangeRule
from workbench.calibration.statistics import LayerStatistics
from workbench.errors import QuantizationError
from workbench.grids import UniformGrid
from workbench.quantization.activations import ActivationCoding, parse_activation

if TYPE_CHECKING:
    import torch

#: A calibrated reach below this is one of zeros only; integer runs then take 0 to 1, and so do we.
_NOTHING = 1e-30


@dataclass(frozen=True)
class ActivationRange:
    """How far the codes of a static coding reach, in units of the values."""

    low: float
    """Smallest real number, at most 0."""
    high: float
    """Largest real number, at least 0."""
    exponent: float | None = None
    """What a search for a power grid's exponent found."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low > self.high:
            message = f"an activation's range is two finite numbers in order, not {self.low} to {self.high}"
            raise QuantizationError(message)
        object.__setattr__(self, "low", min(float(self.low), 0.0))
        object.__setattr__(self, "high", max(float(self.high), 0.0))


def activation_range(
    coding: ActivationCoding | str,
    seen: RangeObserver | LayerStatistics,
    rule: RangeRule | str = "mse",
) -> ActivationRange:
    """Return the range, and the exponent where it is searched, that calibration values give a coding.

    As in integer runs, codings of 16 bits reach as far as was seen, and so do power grids under the rule ``mse`` (their
    levels get rarer towards the end by themselves).

    Args:
        coding: of the values.
        seen: an observer of the values, or statistics of a layer's inputs (their sampled rows; without rows the largest
            magnitude on either side, which is right for ``minmax`` of symmetric codings only).
        rule: ``mse`` (least squared error of equal steps), ``minmax`` or ``percentile:99.99``.

    Raises:
        QuantizationError: nothing was seen, or the rule is not known.
    """
    chosen = _coding(coding)
    if isinstance(seen, LayerStatistics):
        observer = RangeObserver()
        observer.update(seen.inputs if seen.inputs is not None else seen.absmax)
        if seen.inputs is None:
            observer.update(-seen.absmax)
    else:
        observer = seen
    low, high = observer.range("minmax")
    exponent = None
    if chosen.search:
        signed = chosen.for_range(low, high, 1.0).grid
        exponent = observer.best_exponent(chosen.bits, signed=getattr(signed, "signed", False))
    decided = chosen.for_range(low, high, exponent)
    if decided.bits <= 8 and (isinstance(decided.grid, UniformGrid) or str(rule) != "mse"):
        # The words of integer runs take the range that those take; other symmetric grids one that suits symmetric codes.
        symmetric = decided.word is None and decided.grid.normalization != "range" and decided.grid.levels[0] < 0.0
        low, high = (observer.mirrored() if symmetric else observer).range(rule, levels=len(decided.grid.levels))
    return ActivationRange(low, high, exponent)


class ActivationQuantizer:
    """Rounds a tensor to the levels of a coding and back, with a straight-through gradient.

    The gradient is 1 where a value lies within the levels and 0 beyond (clipped straight-through estimator, Bengio et al.
    2013). With ``learn=True`` the static step is a parameter with LSQ's gradient (Esser et al. 2020, eq. 3) times LSQ's
    factor 1 / sqrt(N * Q_P) (section 2.2).

    Args:
        coding: how values are coded; not ``float``.
        reach: range of a static coding (and, for a power grid whose text leaves its sign open, what decides the sign).
        image: whether channels are axis 1 of a batch of images rather than the last axis: ``token`` then is one scale per
            image, ``group`` one per image and run of channels.
        learn: whether the static scale is learned.

    Raises:
        QuantizationError: a static coding without a range, an exponent that nobody searched, or learning a dynamic scale.

    >>> import torch
    >>> ActivationQuantizer("uniform:bits=3@token")(torch.tensor([[0.1, -0.6, 3.0]]))
    tensor([[ 0., -1.,  3.]])
    """

    def __init__(
        self,
        coding: ActivationCoding | str,
        reach: ActivationRange | tuple[float, float] | None = None,
        *,
        image: bool = False,
        learn: bool = False,
    ) -> None:
        chosen = _coding(coding)
        if isinstance(reach, tuple):
            reach = ActivationRange(*reach)
        if reach is None and not chosen.dynamic:
            message = f"{chosen} has one scale, found on calibration inputs: give its range, or write {chosen}@token"
            raise QuantizationError(message)
        if learn and chosen.dynamic:
            message = f"the scales of {chosen} are found at run time and cannot be learned; only static ones can"
            raise QuantizationError(message)
        if reach is not None:
            chosen = chosen.for_range(reach.low, reach.high, reach.exponent)
        if chosen.search:
            message = f"the exponent of {chosen} was left to calibration, and none is given"
            raise QuantizationError(message)
        self.coding = chosen
        self.grid = chosen.grid
        self.reach = reach
        self.image = image
        self.learn = learn
        self.keep = 0.0
        self.generator: torch.Generator | None = None
        self.step: torch.Tensor | None = None
        """The learned step, made at the first call (on the values' device and type)."""
        self._units = max(int((self.grid.levels > 0.0).sum()), 1)
        self._tables: dict[tuple[Any, Any], tuple[torch.Tensor, torch.Tensor]] = {}

    def prepare(self, device: str | torch.device = "cpu", dtype: Any = None) -> torch.Tensor | None:
        """Make the learned step before the first call, so that an optimiser can hold it; None if nothing is learned."""
        import torch

        if self.learn and self.step is None:
            scale, _ = self._static()
            value = scale / self._units
            self.step = torch.tensor(value, device=device, dtype=dtype or torch.float32, requires_grad=True)
        return self.step

    def parameters(self) -> list[torch.Tensor]:
        """Return what is learned: the step, or nothing."""
        return [] if self.step is None else [self.step]

    def drop(self, keep: float, generator: torch.Generator | None = None) -> None:
        """From now on leave each value as it is with this probability (QDrop, Wei et al. 2022, eq. 9); 0 codes them all.

        Args:
            keep: probability, 0 to 1.
            generator: where the draws come from; its device decides where they are made.

        Raises:
            QuantizationError: no probability.
        """
        if not 0.0 <= keep <= 1.0:
            message = f"values are left as they are with a probability from 0 to 1, not {keep}"
            raise QuantizationError(message)
        self.keep, self.generator = keep, generator

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the values that the codes of ``x`` stand for, in its shape, type and device."""
        import torch

        if x.numel() == 0:
            return x
        if self.coding.mode == "group":
            coded = self._by_group(x)
        elif self.coding.mode == "token":
            axes = tuple(range(1, x.ndim)) if self.image else (-1,)
            coded = self._dynamic(x, axes)
        else:
            coded = self._round(x, *self._scale_for(x))
        if self.keep > 0.0:
            device = x.device if self.generator is None else self.generator.device
            kept = torch.rand(x.shape, generator=self.generator, device=device).to(x.device) < self.keep
            coded = torch.where(kept, x, coded)
        return coded

    def _scale_for(self, x: torch.Tensor) -> tuple[Any, Any]:
        """Return scale and offset of a static coding."""
        scale, offset = self._static()
        if not self.learn:
            return scale, offset
        step = self.prepare(x.device, x.dtype)
        assert step is not None
        factor = 1.0 / math.sqrt(x.numel() * self._units)
        slowed = step * factor + (step - step * factor).detach()
        return slowed.to(x.device, x.dtype) * (self._units * math.copysign(1.0, scale)), offset

    def _static(self) -> tuple[float, float]:
        """Scale and offset from the range, by the rules of ``quantization.scales.scale_and_offset``."""
        assert self.reach is not None
        low, high = self.reach.low, self.reach.high
        if max(-low, high) < _NOTHING:
            low, high = 0.0, 1.0
        if self.grid.normalization == "range":
            offset = -low / (high - low)
            if self.grid.integer_zero_point:
                last = len(self.grid.levels) - 1
                offset = round(offset * last) / last
            return high - low, offset
        reach = max(-low, high)
        return (-reach if self.grid.normalization == "signed" and high >= -low else reach), 0.0

    def _dynamic(self, x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        """Find the scales over some axes of the values themselves; a slice of zeros stays zero."""
        import torch

        with torch.no_grad():
            low = x.amin(dim=axes, keepdim=True).clamp(max=0.0)
            high = x.amax(dim=axes, keepdim=True).clamp(min=0.0)
            if self.grid.normalization == "range":
                scale = high - low
                offset = torch.where(scale > 0.0, -low / torch.where(scale > 0.0, scale, 1.0), 0.0)
                if self.grid.integer_zero_point:
                    last = len(self.grid.levels) - 1
                    offset = torch.round(offset * last) / last
            else:
                scale = torch.maximum(-low, high)
                if self.grid.normalization == "signed":
                    scale = torch.where(high >= -low, -scale, scale)
                offset = torch.zeros_like(scale)
            scale = torch.where(scale == 0.0, 1.0, scale)
        return self._round(x, scale, offset)

    def _by_group(self, x: torch.Tensor) -> torch.Tensor:
        """Dynamic scales of runs of consecutive channels; the last run may be shorter."""
        import torch

        axis = 1 if self.image else x.ndim - 1
        size = self.coding.size
        assert size is not None
        channels = x.shape[axis]
        padding = -channels % size
        wide = x
        if padding:
            # zeros change neither end of a run, because zero lies within every range
            wide = torch.cat([x, x.new_zeros(*x.shape[:axis], padding, *x.shape[axis + 1 :])], dim=axis)
        split = wide.unflatten(axis, (-1, size))
        axes = tuple(range(2, split.ndim)) if self.image else (-1,)
        return self._dynamic(split, axes).flatten(axis, axis + 1).narrow(axis, 0, channels)

    def _round(self, x: torch.Tensor, scale: Any, offset: Any) -> torch.Tensor:
        """Return ``scale * (level - offset)``; differentiable in ``x`` and ``scale``."""
        u = x / scale + offset
        levels = self.grid.levels
        inside = u.clamp(float(levels[0]), float(levels[-1]))
        level = inside + (self._level(inside.detach()) - inside).detach()
        return scale * (level - offset)

    def _level(self, u: torch.Tensor) -> torch.Tensor:
        """Return the level of each normalised value."""
        import torch

        if isinstance(self.grid, UniformGrid):
            return torch.round(u * self.grid.n) / self.grid.n
        key = (u.device, u.dtype)
        if key not in self._tables:
            # numbers of the values' own type: float16 could not tell the borders of fine grids apart
            kind = u.dtype if u.dtype == torch.float64 else torch.float32
            thresholds = torch.tensor(self.grid.thresholds, device=u.device, dtype=kind)
            self._tables[key] = thresholds, torch.tensor(self.grid.levels, device=u.device, dtype=kind)
        thresholds, levels = self._tables[key]
        return levels[torch.bucketize(u.to(thresholds.dtype), thresholds, right=True)].to(u.dtype)

    def __repr__(self) -> str:
        reach = "" if self.reach is None else f", {self.reach.low:.4g} to {self.reach.high:.4g}"
        return f"ActivationQuantizer('{self.coding}'{reach})"


@dataclass
class Handles:
    """Quantizers that sit on a module's layers; ``remove`` takes them off. Also a context manager."""

    quantizers: dict[str, ActivationQuantizer]
    """By path inside the module."""
    hooks: list[Any] = field(default_factory=list)

    def remove(self) -> None:
        """Take all quantizers off; a second call does nothing."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def drop(self, keep: float, generator: torch.Generator | None = None) -> None:
        """Set QDrop's probability of leaving a value as it is, for all of them."""
        for quantizer in self.quantizers.values():
            quantizer.drop(keep, generator)

    def parameters(self) -> list[torch.Tensor]:
        """Return the learned steps of all of them."""
        return [each for quantizer in self.quantizers.values() for each in quantizer.parameters()]

    def __enter__(self) -> Handles:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def attach(
    module: torch.nn.Module,
    codings: Mapping[str, ActivationCoding | str | None],
    ranges: Mapping[str, ActivationRange | tuple[float, float]] | None = None,
    *,
    learn: bool = False,
) -> Handles:
    """Code the inputs of a module's layers from now on (the first argument of each one's forward pass).

    Args:
        module: holds the layers.
        codings: by path inside the module (``""``: the module itself); None or ``float`` leaves a layer alone.
        ranges: by the same paths; static codings need theirs (``activation_range``).
        learn: whether static steps are learned (LSQ).

    Raises:
        QuantizationError: no layer at a path, or a static coding without a range.
    """
    handles = Handles({})
    for path, text in codings.items():
        coding = parse_activation(text)
        if coding is None:
            continue
        layer = submodule(module, path)
        reach = (ranges or {}).get(path)
        if reach is None and not coding.dynamic:
            message = f"the inputs of {path or 'the layer'} are coded {coding}, which needs their calibrated range"
            raise QuantizationError(message)
        quantizer = ActivationQuantizer(coding, reach, image=is_convolution(layer), learn=learn and not coding.dynamic)
        weight = getattr(layer, "weight", None)
        quantizer.prepare("cpu" if weight is None else weight.device, None if weight is None else weight.dtype)
        handles.quantizers[path] = quantizer
    for path, quantizer in handles.quantizers.items():
        handles.hooks.append(submodule(module, path).register_forward_pre_hook(_coded(quantizer)))
    return handles


def _coded(quantizer: ActivationQuantizer) -> Any:
    def hook(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (quantizer(arguments[0]), *arguments[1:])

    return hook


def observe(
    module: torch.nn.Module, paths: Iterable[str], inputs: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]]
) -> dict[str, RangeObserver]:
    """Run inputs through a module and return what its layers' inputs held.

    Args:
        module: in evaluation mode.
        paths: of the layers, inside the module.
        inputs: positional and named arguments of each forward pass.

    Raises:
        QuantizationError: no layer at a path, or values that are not finite.
    """
    import torch

    seen = {path: RangeObserver() for path in paths}

    def watch(observer: RangeObserver) -> Any:
        def hook(_: Any, arguments: tuple[Any, ...]) -> None:
            observer.update(arguments[0].detach().float().cpu().numpy())

        return hook

    hooks = [submodule(module, path).register_forward_pre_hook(watch(seen[path])) for path in seen]
    try:
        with torch.no_grad():
            for arguments, options in inputs:
                module(*arguments, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def submodule(module: torch.nn.Module, path: str) -> torch.nn.Module:
    """Return the submodule at a path (``""``: the module itself).

    Raises:
        QuantizationError: there is none.
    """
    try:
        return module.get_submodule(path)
    except AttributeError:
        message = f"{type(module).__name__} has no layer {path!r}"
        raise QuantizationError(message) from None


def is_convolution(layer: torch.nn.Module) -> bool:
    """Say whether channels are axis 1 of the layer's inputs."""
    import torch

    return isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d)


def _coding(coding: ActivationCoding | str) -> ActivationCoding:
    chosen = parse_activation(coding)
    if chosen is None:
        message = "float inputs are not coded at all: nothing is to be quantized"
        raise QuantizationError(message)
    return chosen
