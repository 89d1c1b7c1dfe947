"""Convolutions as matrix products: the window's geometry, and patches of images as rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.arguments import shown


@dataclass(frozen=True)
class Window:
    """How a convolution's kernel walks over the image.

    Attributes:
        kernel: (height, width).
        stride: (vertical, horizontal).
        padding: ((top, bottom), (left, right)), in zeros.
        dilation: (vertical, horizontal).
        groups: channels are split into so many groups, each convolved on its own.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        """Refuse a geometry that no convolution has.

        Raises:
            IntegerError: not positive integers, or a negative padding.
        """
        pairs = [
            np.asarray(each, dtype=object) for each in (self.kernel, self.stride, self.dilation, (self.groups,) * 2)
        ]
        border = np.asarray(self.padding, dtype=object)
        numbers = [number for each in (*pairs, border) for number in each.ravel()]
        whole = all(isinstance(each, int | np.integer) and not isinstance(each, bool) for each in numbers)
        if (
            not whole
            or any(each.shape != (2,) or min(each) < 1 for each in pairs)
            or border.shape != (2, 2)
            or border.min() < 0
        ):
            message = (
                "a window has a kernel, a stride and a dilation of two positive integers each, padding "
                f"((top, bottom), (left, right)) of 0 or more, and 1 group or more, not {shown(self)}"
            )
            raise IntegerError(message)

    def output_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the output's height and width for inputs (images, channels, height, width).

        Raises:
            IntegerError: the kernel does not fit into the padded image.
        """
        sizes = []
        for axis in (0, 1):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            room = shape[2 + axis] + sum(self.padding[axis]) - reach
            if room < 0:
                message = f"a kernel that reaches over {reach} cells does not fit into {shape[2 + axis]} with padding {self.padding[axis]}"
                raise IntegerError(message)
            sizes.append(room // self.stride[axis] + 1)
        return sizes[0], sizes[1]


def patches(images: np.ndarray, window: Window, padding: float = 0, row: int | None = None) -> np.ndarray:
    """Return each output position's cells: (groups, rows, depth), depth ordered (channel, kernel row, kernel column).

    Args:
        images: (images, channels, height, width).
        window: the convolution.
        padding: what the border holds.
        row: only this output position, (groups, 1, depth).

    Raises:
        IntegerError: the channels do not divide into the groups, or the kernel does not fit.
    """
    count, channels = images.shape[:2]
    height, width = window.output_size(images.shape)
    if channels % window.groups:
        message = f"{channels} channels do not divide into {window.groups} groups"
        raise IntegerError(message)
    if row is not None:
        image, place = divmod(row, height * width)
        images = images[image : image + 1]
    padded = np.pad(images, ((0, 0), (0, 0), *window.padding), constant_values=padding)
    reach = tuple(d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel, strict=True))
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    views = views[:, :, :: window.stride[0], :: window.stride[1], :: window.dilation[0], :: window.dilation[1]]
    if row is not None:
        y, x = divmod(place, width)
        views = views[:, :, y : y + 1, x : x + 1]
        count, height, width = 1, 1, 1
    cells = np.moveaxis(views, 1, 3)  # images, height, width, channels, kernel height, kernel width
    rows = cells.reshape(count * height * width, window.groups, -1)
    return np.ascontiguousarray(np.moveaxis(rows, 1, 0))
