"""What a run of the judges was asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Which rows, from which seed.

    Attributes:
        semantics: names to compare, or None for all.
        operators: words of which one must start an operator's name, or None for all.
        seed: of the random models.
        models: random models per row.
        tosa_python: an interpreter that has tosa-tools, or None.
    """

    semantics: tuple[str, ...] | None = None
    operators: tuple[str, ...] | None = None
    seed: int = 0
    models: int = 12
    tosa_python: str | None = None

    def wants(self, semantics: str, operator: str) -> bool:
        """Return whether a row is asked for; rows of no semantics (casts) only where none was named."""
        named = self.semantics is None or semantics in self.semantics
        return named and (self.operators is None or any(operator.startswith(word) for word in self.operators))
