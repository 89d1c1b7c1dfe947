"""From what layers are given while a block runs to their statistics: moments, Gram matrices, sampled rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.calibration.statistics import InputGap, LayerStatistics
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

#: Up to this depth Gram matrices are summed in float64, beyond it in float32 (a float64 one would take over 512 MiB).
WIDE_DEPTH = 8192
#: Numbers of a convolution's patches that are in memory at once.
MOST_PATCHES = 1 << 24


def input_rows(module: torch.nn.Module, value: torch.Tensor, mask: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """Yield a layer's input on its matrix view, (groups, rows, depth), float32; images a few at a time.

    Args:
        module: a linear layer or a convolution.
        value: what it is given.
        mask: truths (samples, positions): positions that are no padding; None where all count. Inputs of another shape
            (pooled ones) are taken whole.
    """
    import torch

    value = value.detach().float()
    if not isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d):
        rows = value.reshape(-1, value.shape[-1])
        if mask is not None and value.ndim > 2 and len(rows) == mask.numel():
            rows = rows[mask.reshape(-1).to(rows.device)]
        yield rows[None]
        return
    sides = len(module.kernel_size)
    images = value if value.ndim == sides + 2 else value[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padding: Any = module._reversed_padding_repeated_twice
    outputs = 1
    for side, kernel, stride, dilation in zip(
        images.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True
    ):
        outputs *= (int(side) + kernel * dilation) // stride + 1
    step = max(1, MOST_PATCHES // max(1, outputs * images.shape[1] * int(np.prod(module.kernel_size))))
    for part in images.split(step):
        patches = torch.nn.functional.pad(part, padding, mode=mode)
        for side in range(sides):
            reach = module.dilation[side] * (module.kernel_size[side] - 1) + 1
            patches = patches.unfold(2 + side, reach, module.stride[side])[..., :: module.dilation[side]]
        order = (0, *range(2, 2 + sides), 1, *range(2 + sides, 2 + 2 * sides))
        patches = patches.permute(order)
        count = int(np.prod(patches.shape[: 1 + sides]))
        yield patches.reshape(count, module.groups, -1).transpose(0, 1)


def outputs_last(module: torch.nn.Module, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return a layer's output (or the gradient at it) as rows (positions, outputs), without padding."""
    import torch

    if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d):
        if value.ndim == len(module.kernel_size) + 1:
            value = value[None]
        return value.movedim(1, -1).reshape(-1, value.shape[1])
    rows = value.reshape(-1, value.shape[-1])
    if mask is not None and value.ndim > 2 and len(rows) == mask.numel():
        rows = rows[mask.reshape(-1).to(rows.device)]
    return rows


class Accumulator:
    """Sums over the input rows of one layer.

    Args:
        name: the layer's.
        gram: whether E[x x^T] is wanted.
        gap: whether the moments of the difference to the float model's rows are wanted.
        rows: how many rows to sample; 0 for none. Each row draws a number that depends on ``seed`` and its place only, and
            those with the smallest are kept: a uniform sample, and the same rows in another run over as many.
        seed: of the sample.
    """

    def __init__(self, name: str, *, gram: bool, gap: bool, rows: int, seed: int) -> None:
        self.name = name
        self.count = 0
        self.paired = True
        """Whether every row so far came with the same row of the float model."""
        self._calls = 0
        self._wanted, self._seed, self._with_gram, self._with_gap = rows, seed, gram, gap
        self._keys = np.zeros(0)
        self._sampled: torch.Tensor | None = None
        self._sampled_floats: torch.Tensor | None = None
        self._sums: list[torch.Tensor] = []
        self._absmax: torch.Tensor | None = None
        self._gram: torch.Tensor | None = None
        self._gap: list[torch.Tensor] | None = None

    def add(self, parts: Iterator[torch.Tensor], floats: Iterator[torch.Tensor] | None = None) -> None:
        """Take the rows (groups, rows, depth) of one call, in parts.

        Args:
            parts: what the layer was given.
            floats: the same rows in the float model; None where they are the same numbers, or not to be looked at. Where
                another number of them comes (an expert to which other tokens were routed), the rows do not correspond
                and nothing is said of how the two differ.

        Raises:
            CheckpointError: they are not finite.
        """
        generator = np.random.default_rng([self._seed, self._calls])
        seen = 0
        for part in parts:
            floating = None if floats is None else next(floats, None)
            self.paired &= floating is not None and floating.shape == part.shape
            if part.shape[1] == 0:
                continue
            self._add_moments(part)
            beside = floating if self.paired else None
            if self._with_gap and beside is not None:
                self._add_gap(part, beside)
            if self._wanted:
                self._sample(part, beside, generator.random(part.shape[1]))
            seen += part.shape[1]
        self._calls += 1
        self.count += seen

    def _add_moments(self, part: torch.Tensor) -> None:
        import torch

        magnitude = part.abs()
        absmax = magnitude.amax(dim=1).double().cpu()
        if not bool(torch.isfinite(absmax).all()):
            bad = int((~torch.isfinite(part)).sum())
            message = f"the inputs of {self.name} hold {bad:,} numbers that are not finite, so it cannot be calibrated"
            raise CheckpointError(message)
        wide = torch.float64 if part.device.type != "mps" else torch.float32
        sums = [each.sum(dim=1, dtype=wide).double().cpu() for each in (part, magnitude, part * part)]
        if self._absmax is None:
            self._absmax, self._sums = absmax, sums
        else:
            self._absmax = torch.maximum(self._absmax, absmax)
            self._sums = [total + each for total, each in zip(self._sums, sums, strict=True)]
        if self._with_gram:
            product = torch.bmm(part.transpose(1, 2), part)
            if self._gram is None:
                self._gram = product.to(wide if part.shape[2] <= WIDE_DEPTH else torch.float32)
            else:
                self._gram += product

    def _add_gap(self, part: torch.Tensor, floating: torch.Tensor) -> None:
        import torch

        wide = torch.float64 if part.device.type != "mps" and part.shape[2] <= WIDE_DEPTH else torch.float32
        gaps = floating - part
        turned = gaps.transpose(1, 2)
        new = [torch.bmm(turned, part), torch.bmm(turned, gaps), gaps.sum(dim=1)]
        if self._gap is None:
            self._gap = [each.to(wide) for each in new]
        else:
            self._gap = [total.add_(each) for total, each in zip(self._gap, new, strict=True)]

    def _sample(self, part: torch.Tensor, floating: torch.Tensor | None, keys: np.ndarray) -> None:
        import torch

        new = np.arange(len(keys))
        if len(self._keys) >= self._wanted:
            new = new[keys < self._keys.max()]
            if not len(new):
                return
        all_keys = np.concatenate([self._keys, keys[new]])
        keep = np.sort(np.argsort(all_keys, kind="stable")[: self._wanted])

        def joined(known: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
            taken = more[:, torch.from_numpy(new).to(more.device)].cpu()
            rows = taken if known is None else torch.cat([known, taken], dim=1)
            return rows[:, torch.from_numpy(keep)].contiguous()

        self._keys = all_keys[keep]
        self._sampled = joined(self._sampled, part)
        self._sampled_floats = None if floating is None else joined(self._sampled_floats, floating)

    def statistics(self, name: str, fisher: np.ndarray | None) -> LayerStatistics | None:
        """Return what was found under a layer's name; None where no row was seen."""
        if self.count == 0 or self._absmax is None:
            return None
        mean, magnitude, second = (each.numpy() / self.count for each in self._sums)
        gram = None
        if self._gram is not None:
            gram = self._gram.cpu().numpy()
            gram = gram / gram.dtype.type(self.count)
        gap = None
        if self.paired and self._gap is not None:
            gap = InputGap(*(each.double().cpu().numpy() / self.count for each in self._gap))
        return LayerStatistics(
            name=name,
            count=self.count,
            second=second,
            mean=mean,
            mean_magnitude=magnitude,
            absmax=self._absmax.numpy(),
            gram=gram,
            inputs=None if self._sampled is None else self._sampled.numpy(),
            float_inputs=self._sampled_floats.numpy() if self.paired and self._sampled_floats is not None else None,
            gap=gap,
            fisher=fisher,
        )


class _NotSharedError(Exception):
    """Two layers that were given the same tensor in one pass were given different ones in another."""


def accumulate(
    module: torch.nn.Module,
    calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]],
    places: Mapping[str, str],
    masks: Sequence[torch.Tensor | None],
    *,
    gram: bool,
    gap: bool,
    rows: int,
    seed: int,
    told: Callable[[int, Any], object],
    floats: Callable[[int], Mapping[str, list[torch.Tensor]]] | None = None,
) -> dict[str, Accumulator]:
    """Run a block on its inputs and sum up what its layers are given; layers with the same input share their sums.

    Args:
        module: the block.
        calls: its arguments, one entry for each pass.
        places: layer names -> paths in the block.
        masks: for each pass, the positions that count.
        gram: whether Gram matrices are wanted.
        gap: whether the moments of the difference to the float model's inputs are wanted.
        rows: rows to sample.
        seed: of the sample.
        told: called with each pass's number and output; may raise ``Cancelled``.
        floats: gives what each layer is given in the float model in a pass; None where that is the same, or not wanted.

    Raises:
        CheckpointError: inputs that are not finite.
    """
    asked: dict[str, Any] = {"gram": gram, "gap": gap, "rows": rows, "seed": seed, "told": told, "floats": floats}
    try:
        return _accumulate(module, calls, places, masks, **asked, share=True)
    except _NotSharedError:
        return _accumulate(module, calls, places, masks, **asked, share=False)


def _accumulate(
    module: torch.nn.Module,
    calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]],
    places: Mapping[str, str],
    masks: Sequence[torch.Tensor | None],
    *,
    gram: bool,
    gap: bool,
    rows: int,
    seed: int,
    told: Callable[[int, Any], object],
    floats: Callable[[int], Mapping[str, list[torch.Tensor]]] | None,
    share: bool,
) -> dict[str, Accumulator]:
    import torch

    found: dict[str, Accumulator] = {}
    seen: dict[Any, tuple[torch.Tensor, Accumulator]] = {}  # of one pass; holds the tensors so that ids stay theirs
    number = 0
    floating: Mapping[str, list[torch.Tensor]] = {}
    apart: set[str] = set()  # layers that the float model reached when this one did not
    listening = True

    def watch(name: str, layer: torch.nn.Module) -> Callable[..., None]:
        geometry = tuple(
            str(getattr(layer, each, None)) for each in ("kernel_size", "stride", "padding", "dilation", "groups")
        )

        def hook(_layer: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
            if not listening:
                return
            value = arguments[0] if arguments else next(iter(options.values()))
            key = (id(value), value._version, geometry)
            known = seen.get(key) if share else None
            own = found.get(name)
            if known is not None and (own is None or own is known[1]):
                found[name] = known[1]
                return
            if own is None:
                own = found[name] = Accumulator(name, gram=gram, gap=gap, rows=rows, seed=seed)
                own.paired = name not in apart
            elif own.name != name:
                raise _NotSharedError
            beside = input_rows(layer, floating[name].pop(0), masks[number]) if floating.get(name) else None
            own.add(input_rows(layer, value, masks[number]), beside)
            seen[key] = (value, own)

        return hook

    layers = {name: module.get_submodule(path) for name, path in places.items()}
    # Before any other hook: one that quantizes the input must not hide what the layer was given.
    handles = [
        layer.register_forward_pre_hook(watch(name, layer), with_kwargs=True, prepend=True)
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            for number, (arguments, options) in enumerate(calls):
                if floats is not None:
                    listening = False  # the float block may be this very module
                    floating = floats(number)
                    listening = True
                output = module(*arguments, **options)
                seen.clear()
                apart |= {
                    name for name, left in floating.items() if left and (name not in found or found[name].name == name)
                }
                for name in apart & found.keys():
                    found[name].paired = False
                told(number, output)
    finally:
        for handle in handles:
            handle.remove()
    return found


class FloatPasses:
    """Runs the float block on one pass's float inputs and says what each layer was given.

    Args:
        module: the block with its float weights.
        calls: its arguments in the float model, one entry for each pass.
        places: layer names -> paths in the block.
        told: called with each pass's number and output; may raise ``Cancelled``.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]],
        places: Mapping[str, str],
        told: Callable[[int, Any], object],
    ) -> None:
        self.layers = {name: module.get_submodule(path) for name, path in places.items()}
        self.module, self.calls, self.told = module, calls, told

    def __call__(self, number: int) -> dict[str, list[torch.Tensor]]:
        """Return the input tensors of each layer that was reached in a pass, in the order of its calls."""
        import torch

        found: dict[str, list[torch.Tensor]] = {}

        def watch(name: str) -> Callable[..., None]:
            def hook(_layer: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
                found.setdefault(name, []).append(arguments[0] if arguments else next(iter(options.values())))

            return hook

        handles = [
            layer.register_forward_pre_hook(watch(name), with_kwargs=True, prepend=True)
            for name, layer in self.layers.items()
        ]
        try:
            with torch.no_grad():
                arguments, options = self.calls[number]
                self.told(number, self.module(*arguments, **options))
        finally:
            for handle in handles:
                handle.remove()
        return found
