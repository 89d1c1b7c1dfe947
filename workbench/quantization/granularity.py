"""What shares one scale: the whole tensor, a channel, or a group of consecutive weights of a row.

The words are torchao's (``PerTensor``, ``PerAxis``, ``PerGroup``); the text forms are ``tensor``, ``channel`` and
``group:128``. All work on the matrix view of a weight: (rows, columns) = (out, in * kernel height * kernel width).
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import QuantizationError


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor: weight [A, B] -> scale [1, 1].

    >>> PerTensor().scale_shape(6, 10)
    (1, 1)
    """

    def __str__(self) -> str:
        return "tensor"

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape of the scale array."""
        return (1, 1)

    def group_size(self, columns: int) -> int:
        """Return how many consecutive weights of a row share a scale."""
        return columns


@dataclass(frozen=True)
class PerAxis:
    """One scale for each output channel (row): weight [A, B] -> scale [A, 1].

    Raises:
        QuantizationError: ``axis`` is not 0; only the output axis is a row of the matrix view.

    >>> PerAxis(0).scale_shape(6, 10)
    (6, 1)
    """

    axis: int = 0

    def __post_init__(self) -> None:
        if self.axis != 0:
            message = f"PerAxis shares a scale along the output axis 0, not axis {self.axis}"
            raise QuantizationError(message)

    def __str__(self) -> str:
        return "channel"

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape of the scale array."""
        return (rows, 1)

    def group_size(self, columns: int) -> int:
        """Return how many consecutive weights of a row share a scale."""
        return columns


@dataclass(frozen=True)
class PerGroup:
    """One scale for each run of ``size`` weights in a row: weight [A, B] -> scale [A, ceil(B / size)].

    The last group of a row is shorter where ``size`` does not divide the columns.

    Raises:
        QuantizationError: ``size`` is below 1.

    >>> PerGroup(4).scale_shape(6, 10)
    (6, 3)
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            message = f"a group holds at least one weight, not {self.size}"
            raise QuantizationError(message)

    def __str__(self) -> str:
        return f"group:{self.size}"

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape of the scale array."""
        return (rows, -(-columns // self.size))

    def group_size(self, columns: int) -> int:
        """Return how many consecutive weights of a row share a scale."""
        return min(self.size, max(columns, 1))


Granularity = PerTensor | PerAxis | PerGroup


def parse_granularity(text: str | Granularity) -> Granularity:
    """Read ``tensor``, ``channel`` or ``group:128`` (a granularity itself passes through).

    Raises:
        QuantizationError: the text is none of the three.

    >>> parse_granularity("group:128")
    PerGroup(size=128)
    """
    if isinstance(text, PerTensor | PerAxis | PerGroup):
        return text
    word = str(text).strip().lower()
    if word == "tensor":
        return PerTensor()
    if word == "channel":
        return PerAxis(0)
    kind, _, size = word.partition(":")
    if kind == "group" and size.isdecimal() and int(size) > 0:
        return PerGroup(int(size))
    message = f"granularity {text!r} is not known; write tensor, channel, or group:128 (any group size)"
    raise QuantizationError(message)
