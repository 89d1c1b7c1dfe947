"""The circumstances of one run of a method: seed, device, who is told how far it is, and the curve it leaves."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import QuantizationError

if TYPE_CHECKING:
    import pandas as pd
    import torch

#: Told (finished fraction of this run, label); may raise ``Cancelled``.
Progress = Callable[[float, str], None]
#: Told (name, step, steps, loss) while a method learns; may raise ``Cancelled``.
StepListener = Callable[[str, int, int, float], None]
#: Points that a curve keeps at most, evenly spread.
MOST_POINTS = 512


@dataclass(frozen=True)
class Trace:
    """A method's curve: its own loss, step by step, and what else it recorded.

    >>> Trace(steps=(0, 10), loss=(1.0, 0.5)).to_frame().loss.tolist()
    [1.0, 0.5]
    """

    steps: tuple[int, ...] = ()
    loss: tuple[float, ...] = ()
    """The method's own loss at each step (what it minimises, without regularisers)."""
    more: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Other columns of the same length, e.g. ``exponent`` or ``clip``."""

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        if not self.steps:
            return "Trace(empty)"
        more = f"; {', '.join(self.more)}" if self.more else ""
        return (
            f"Trace({len(self)} points, steps {self.steps[0]} to {self.steps[-1]}, "
            f"loss {self.loss[0]:.4g} to {self.loss[-1]:.4g}{more})"
        )

    def to_frame(self) -> pd.DataFrame:
        """Return the curve as a table, one row per recorded step."""
        import pandas as pd

        return pd.DataFrame({"loss": self.loss, **self.more}, index=pd.Index(self.steps, name="step"))


@dataclass(frozen=True)
class Run:
    """What a method is run with, beside its task.

    Raises:
        QuantizationError: a seed that is negative or no whole number.

    Attributes:
        seed: of every random choice. Each layer draws from a generator of its own, so that the order does not matter.
        device: torch device of methods that use torch, e.g. ``cpu``, ``cuda``, ``mps``.
        progress: told the finished fraction and a label; may raise ``Cancelled``.
        on_step: told each step's loss while a method learns; may raise ``Cancelled``.
    """

    seed: int = 0
    device: str = "cpu"
    progress: Progress = lambda fraction, label: None
    on_step: StepListener = lambda name, step, steps, loss: None

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer) or self.seed < 0:
            message = f"a seed is a whole number of at least 0, not {self.seed!r}"
            raise QuantizationError(message)

    def torch_generator(self, name: str, device: str | None = None) -> torch.Generator:
        """Return torch's random generator of one layer or block (on the CPU unless a device is named)."""
        import torch

        generator = torch.Generator(device or "cpu")
        # torch's CPU generator reads the lower 32 bits of a seed only: both must be in them.
        generator.manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        return generator


class Recorder:
    """Collects a curve while a method learns, and tells the run's listeners.

    >>> recorder = Recorder(Run(), "layer", steps=3)
    >>> for step, loss in enumerate([3.0, 2.0, 1.5, 1.0]):
    ...     recorder.record(step, loss, exponent=0.5)
    >>> recorder.trace().loss
    (3.0, 2.0, 1.5, 1.0)
    """

    def __init__(self, run: Run, name: str, steps: int) -> None:
        self.run = run
        self.name = name
        self.steps = steps
        self._every = max(1, -(-(steps + 1) // MOST_POINTS))
        self._points: list[tuple[int, float, dict[str, float]]] = []
        self._told = 0.0

    def wants(self, step: int) -> bool:
        """Say whether this step's numbers are kept: others need not be read off the device."""
        return step % self._every == 0 or step == self.steps

    def record(self, step: int, loss: float, **more: float) -> None:
        """Keep a step's loss (0 is the start, ``steps`` the end) and tell the listeners, at most twenty times a second."""
        if self.wants(step):
            self._points.append((step, float(loss), {name: float(value) for name, value in more.items()}))
        now = time.monotonic()
        if now - self._told >= 0.05 or step == self.steps:
            self._told = now
            self.run.on_step(self.name, step, self.steps, float(loss))
            self.run.progress(step / max(self.steps, 1), self.name)

    def trace(self) -> Trace:
        """Return the curve so far."""
        names = list(dict.fromkeys(name for _, _, more in self._points for name in more))
        return Trace(
            tuple(step for step, _, _ in self._points),
            tuple(loss for _, loss, _ in self._points),
            {name: tuple(more.get(name, np.nan) for _, _, more in self._points) for name in names},
        )
