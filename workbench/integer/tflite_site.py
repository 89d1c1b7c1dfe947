"""What TensorFlow Lite's operators are built from: one operator of a file at a time, its tensors and options checked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.graph import Node, Value
from workbench.integer.operator import ANY, Operator
from workbench.integer.semantics import Semantics
from workbench.integer.tflite_reader import TFLiteOperator, TFLiteTensor

#: What TensorFlow Lite Micro does to uint8 codes: it converts them and moves them, nothing else.
EDGES = {"QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS"}
#: Types of quantized activations.
CODES = (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16))


@dataclass(frozen=True, eq=False)
class Site:
    """One operator of a file, and the runtime whose arithmetic it gets."""

    operator: TFLiteOperator
    semantics: Semantics

    def fail(self, reason: str) -> IntegerError:
        """Return the error that says why this operator cannot be read."""
        return IntegerError(f"{self.operator}: {reason}")

    def tensor(self, place: int) -> TFLiteTensor:
        """Return an input that must be there."""
        if place >= len(self.operator.inputs) or self.operator.inputs[place] is None:
            raise self.fail(f"input {place} is missing")
        found = self.operator.inputs[place]
        assert found is not None
        return found

    def maybe(self, place: int) -> TFLiteTensor | None:
        """Return an input that may be left out."""
        return self.operator.inputs[place] if place < len(self.operator.inputs) else None

    def constant(self, place: int, name: str) -> np.ndarray:
        """Return an input's contents, which the file must hold."""
        found = self.tensor(place).data
        if found is None:
            raise self.fail(f"its {name} is computed by the model; only constant ones are covered")
        return found

    def integers(self, place: int, name: str) -> list[int]:
        """Return a constant input as a list of integers."""
        found = self.constant(place, name)
        if found.dtype not in {np.dtype(np.int32), np.dtype(np.int64)}:
            raise self.fail(f"its {name} is int32 or int64, not {found.dtype}")
        return [int(value) for value in found.ravel()]

    @property
    def output(self) -> TFLiteTensor:
        """The first output."""
        if not self.operator.outputs:
            raise self.fail("it has no output")
        return self.operator.outputs[0]

    def coded(self, tensor: TFLiteTensor, types: tuple[np.dtype, ...] = CODES) -> tuple[np.float32, int]:
        """Return scale and zero point of a tensor of codes."""
        if tensor.dtype not in types or tensor.scale.size != 1:
            raise self.fail(f"{tensor} is no tensor of {', '.join(map(str, types))} codes with one scale")
        if tensor.dtype == np.uint8 and self.semantics.name == "tflm" and self.operator.name not in EDGES:
            raise self.fail("TensorFlow Lite Micro has no uint8 kernel of it")
        zero = int(tensor.zero_point[0])
        limits = np.iinfo(tensor.dtype)
        if not limits.min <= zero <= limits.max:
            raise self.fail(f"{tensor} has zero point {zero}, which its type cannot hold")
        return tensor.scale[0], zero

    def same_coding(self, *tensors: TFLiteTensor) -> None:
        """Refuse tensors whose codes do not stand for the same numbers."""
        first = (tensors[0].dtype, *(part.tolist() for part in (tensors[0].scale, tensors[0].zero_point)))
        for each in tensors[1:]:
            if (each.dtype, each.scale.tolist(), each.zero_point.tolist()) != first:
                raise self.fail(f"{each} is not coded as {tensors[0]}, and the runtime does not rescale here")

    def option(self, name: str, default: Any = 0) -> Any:
        """Return one of the operator's options."""
        return self.operator.options.get(name, default)

    def positive(self, *names: str) -> tuple[int, ...]:
        """Return options that are 1 or above."""
        found = tuple(int(self.option(name, 1)) for name in names)
        if min(found) < 1:
            raise self.fail(f"{', '.join(names)} are 1 or above, not {found}")
        return found

    def clamp(self) -> dict[str, int]:
        """Return the smallest and largest output code of the fused activation."""
        activation = self.option("FusedActivationFunction", "NONE")
        bounds = {"NONE": (None, None), "RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}
        if activation not in bounds:
            raise self.fail(f"the fused activation {activation} is not covered")
        scale, zero = self.coded(self.output)
        limits = np.iinfo(self.output.dtype)

        def code(bound: float) -> int:
            # In float32, half away from zero.
            ratio = float(np.float32(bound) / scale)
            return zero + int(np.copysign(np.floor(abs(ratio) + 0.5), ratio))

        low, high = bounds[activation]
        return {
            "low": int(limits.min) if low is None else max(int(limits.min), code(low)),
            "high": int(limits.max) if high is None else min(int(limits.max), code(high)),
        }


@dataclass(frozen=True, eq=False)
class Built:
    """What an operator's tensors prepare: the values that its run reads, constants, and options."""

    inputs: tuple[TFLiteTensor, ...]
    constants: dict[str, np.ndarray]
    options: dict[str, Any]


class TFLite(Operator):
    """One builtin operator of TensorFlow Lite, read from a file; it has no float twin."""

    roles: ClassVar[tuple[str, ...]] = (ANY,)
    builtin: ClassVar[str]

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Refuse: a quantized file holds integers only.

        Raises:
            IntegerError: always.
        """
        del inputs
        message = f"{node.name!r} was read from a quantized TensorFlow Lite file, which has no float weights"
        raise IntegerError(message)

    @abstractmethod
    def build(self, site: Site) -> Built:
        """Prepare the integers of one operator of a file.

        Raises:
            IntegerError: its tensors or options are not covered; the message names the operator.
        """

    @abstractmethod
    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Run on codes: values and constant operands in the operator's order."""

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        del values
        operands = [
            node.constants[each] if isinstance(each, str) else inputs[each]
            for each in node.options.get("operands", range(len(inputs)))
        ]
        return self.compute(node, operands, semantics)


def operands(
    tensors: Sequence[TFLiteTensor],
) -> tuple[tuple[TFLiteTensor, ...], dict[str, np.ndarray], tuple[Any, ...]]:
    """Split operands into values, constants by name, and their order (a place among the values, or a name)."""
    running = [each for each in tensors if each.data is None]
    constants = {f"operand{place}": each.data for place, each in enumerate(tensors) if each.data is not None}
    count = iter(range(len(running)))
    order = tuple(next(count) if each.data is None else f"operand{place}" for place, each in enumerate(tensors))
    return tuple(running), constants, order
