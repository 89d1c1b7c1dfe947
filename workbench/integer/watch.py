"""Watching a run: what each operator's accumulator needed, and how often something had to be clamped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Observation:
    """What one operator did.

    Attributes:
        operator: e.g. ``"linear"``.
        outputs: how many numbers it gave.
        saturated: how many left the output's integer type and were clamped. What an activation clamps inside the type is
            not counted; a ReLU whose zero point is the type's smallest code clamps at its end, and there both are one.
        accumulator_bits: width of the accumulator that was used; 0 where the operator has none.
        worst_case_bits: bits that no input of the allowed range can exceed.
        observed_bits: bits that this input needed (of the final sums; of every partial sum for a narrow accumulator).
        overflows: additions that wrapped or saturated in a narrow accumulator.
    """

    operator: str
    outputs: int
    saturated: int = 0
    accumulator_bits: int = 0
    worst_case_bits: int = 0
    observed_bits: int = 0
    overflows: int = 0


@dataclass
class Watch:
    """Observations in the order in which the operators ran."""

    observations: list[Observation] = field(default_factory=list)

    @property
    def saturated(self) -> int:
        """Return how many outputs were clamped in all."""
        return sum(each.saturated for each in self.observations)

    @property
    def overflows(self) -> int:
        """Return how many additions wrapped or saturated in all."""
        return sum(each.overflows for each in self.observations)


_watching: ContextVar[Watch | None] = ContextVar("workbench_integer_watch", default=None)


@contextmanager
def watch() -> Iterator[Watch]:
    """Collect what every operator inside the block observes (of this thread or task; an inner block hides an outer).

    >>> with watch() as seen:
    ...     pass
    >>> seen.saturated
    0
    """
    seen = Watch()
    token = _watching.set(seen)
    try:
        yield seen
    finally:
        _watching.reset(token)


def note(observation: Observation) -> None:
    """Hand an observation to whoever watches."""
    seen = _watching.get()
    if seen is not None:
        seen.observations.append(observation)


def is_watched() -> bool:
    """Return whether anybody watches: what costs a pass over the data is only computed then."""
    return _watching.get() is not None


@contextmanager
def merged(operator: str) -> Iterator[None]:
    """Show everything that is observed inside the block as one observation: an operator made of several steps.

    Outputs are those of the last step; saturations and overflows are summed, and of the bits the largest counts.
    """
    if not is_watched():
        yield
        return
    with watch() as seen:
        yield
    each = seen.observations
    note(
        Observation(
            operator,
            outputs=each[-1].outputs if each else 0,
            saturated=seen.saturated,
            accumulator_bits=max((one.accumulator_bits for one in each), default=0),
            worst_case_bits=max((one.worst_case_bits for one in each), default=0),
            observed_bits=max((one.observed_bits for one in each), default=0),
            overflows=seen.overflows,
        )
    )
