"""A trace: the steps of one output number, each a formula with numbers in it and its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    import pandas as pd

#: Terms that a folded sum shows at its beginning and its end.
FIRST, LAST = 5, 3


@dataclass(frozen=True)
class Step:
    """One step of the arithmetic.

    Attributes:
        stage: the part of the run: ``bias``, ``sum``, ``groups``, ``root``, ``shift``, ``factor``, ``rescale``,
            ``clamp``, ``function`` or ``output``.
        name: what the step is called where the runtime's source or specification names it.
        formula: a Python expression with its numbers written out; tables are named as in ``Trace.tables``.
        result: what it gives: an integer; a real number only where the run prepares a factor, where a runtime
            multiplies in float32 (``onnxruntime``), and where the last code is read back.
        note: why, in a few words; empty where the formula says it.
    """

    stage: str
    name: str
    formula: str
    result: int | float
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.formula} = {self.result}"


@dataclass(frozen=True, repr=False, eq=False)
class Terms:
    """The sum term by term, in the order of the additions; one entry each."""

    group: Int[np.ndarray, " terms"]
    """Which of the row's scale groups the term belongs to: each has a sum of its own."""
    source: Int[np.ndarray, " terms"]
    """Place of the input in the flattened inputs; -1 where the convolution pads."""
    input_real: Float[np.ndarray, " terms"]
    """The real input; 0 where the convolution pads."""
    input_code: Int[np.ndarray, " terms"]
    """Its stored code; the code of 0 (where there is one) for padding."""
    input_integer: Int[np.ndarray, " terms"]
    """The integer that is multiplied: a level, the code itself, or for ``per-product`` the index of the level."""
    weight_real: Float[np.ndarray, " terms"]
    """The real weight; nan where the source is closed."""
    weight_code: Int[np.ndarray, " terms"]
    weight_integer: Int[np.ndarray, " terms"]
    weight_zero_point: Int[np.ndarray, " terms"]
    product: Int[np.ndarray, " terms"]
    partial_sum: Int[np.ndarray, " terms"]
    """The accumulator after this term."""
    overflow: Bool[np.ndarray, " terms"]
    """Whether this addition left the accumulator, which then wrapped or saturated."""

    def __len__(self) -> int:
        return len(self.product)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each term."""
        import pandas as pd

        names = {
            "group": self.group,
            "source": self.source,
            "input": self.input_real,
            "input code": self.input_code,
            "input integer": self.input_integer,
            "weight": self.weight_real,
            "weight code": self.weight_code,
            "weight integer": self.weight_integer,
            "weight zero point": self.weight_zero_point,
            "product": self.product,
            "partial sum": self.partial_sum,
            "overflow": self.overflow,
        }
        return pd.DataFrame(names, index=pd.RangeIndex(len(self), name="term"))

    def folded(self, first: int = FIRST, last: int = LAST) -> list[int | None]:
        """Return the terms to show: the first and the last ones, every overflow (at most 8), None for a gap.

        Args:
            first: how many at the beginning.
            last: how many at the end.
        """
        count = len(self)
        wanted = {
            *range(min(first, count)),
            *range(max(count - last, 0), count),
            *np.flatnonzero(self.overflow)[:8].tolist(),
        }
        shown: list[int | None] = []
        for term in sorted(wanted):
            if shown and shown[-1] is not None and term > shown[-1] + 1:
                shown.append(None)
            shown.append(term)
        return shown


@dataclass(frozen=True, repr=False, eq=False)
class Trace:
    """How one output number of a ``LayerRun`` comes about.

    ``steps`` are all steps but the terms of the sum, in order; ``terms`` are those, and ``term(k)`` writes the steps of
    one of them out. A formula is a Python expression: ``eval`` of it, with ``tables`` and ``functions`` as names, gives
    the result, so a trace can be checked without the workbench's kernels, or on paper.
    """

    layer: str
    row: int
    channel: int
    semantics: str
    terms: Terms
    steps: tuple[Step, ...]
    code: int
    """The output code."""
    integer: float
    """What it stands for."""
    real: float
    """The float layer's output."""
    fake: float
    """The fake-quantized output."""
    step_size: float
    """Real size of one output step."""
    tables: Mapping[str, Any] = field(default_factory=dict)
    """What formulas look up: level tables by code, tables of products, the function's table by code."""
    functions: Mapping[str, Any] = field(default_factory=dict)
    """Functions that formulas call beside Python's own."""
    rules: Mapping[str, str] = field(default_factory=dict)
    """How the terms' integers arise, as format texts for ``term``."""
    before: int = 0
    """How many of the steps come before the first term: the bias, where the sum starts from it."""
    start: tuple[int, ...] = (0,)
    """What the sum of each group starts from: the bias where it is added first, else 0."""

    def term(self, index: int) -> list[Step]:
        """Return the steps of one term: its integers, its product, and the sum after it.

        Args:
            index: 0 to ``len(terms) - 1``; negative ones count from the end.

        Raises:
            IndexError: there is no such term.
        """
        index = range(len(self.terms))[index]
        t = self.terms
        group = int(t.group[index])
        first = index == 0 or int(t.group[index - 1]) != group
        numbers: dict[str, Any] = {
            "x": float(t.input_real[index]),
            "q": int(t.input_code[index]),
            "i": int(t.input_integer[index]),
            "w": float(t.weight_real[index]),
            "c": int(t.weight_code[index]),
            "v": int(t.weight_integer[index]),
            "z": int(t.weight_zero_point[index]),
            "p": int(t.product[index]),
            "before": self.start[group] if first else int(t.partial_sum[index - 1]),
            "group": group,
        }
        padded = int(t.source[index]) < 0
        steps = []
        if not padded:
            steps += [
                Step("input", "input code", self._rule("input code", numbers), numbers["q"]),
                Step("input", "input integer", self._rule("input integer", numbers), numbers["i"]),
            ]
        if np.isfinite(numbers["w"]):
            steps.append(Step("weight", "weight code", self._rule("weight code", numbers, group), numbers["c"]))
        steps.append(Step("weight", "weight integer", self._rule("weight integer", numbers, group), numbers["v"]))
        note = "the convolution pads here" if padded else ""
        steps.append(Step("product", "product", self._rule("product", numbers), numbers["p"], note))
        note = "the accumulator overflowed" if t.overflow[index] else ""
        steps.append(Step("sum", "partial sum", self._rule("partial sum", numbers), int(t.partial_sum[index]), note))
        return steps

    def _rule(self, name: str, numbers: Mapping[str, Any], group: int = 0) -> str:
        text = self.rules.get(f"{name} of group {group}", self.rules.get(name, ""))
        return text.format(**{key: _written(value) for key, value in numbers.items()})

    def every_step(self) -> Iterator[Step]:
        """Yield all steps in order, those of the terms too."""
        yield from self.steps[: self.before]
        for index in range(len(self.terms)):
            yield from self.term(index)
        yield from self.steps[self.before :]

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each step (terms apart): stage, name, formula, result, note."""
        import pandas as pd

        columns = ["stage", "name", "formula", "result", "note"]
        rows = [(step.stage, step.name, step.formula, step.result, step.note) for step in self.steps]
        return pd.DataFrame(rows, columns=columns).astype({"result": object})

    def __repr__(self) -> str:
        overflows = int(self.terms.overflow.sum())
        lost = f", {overflows} overflows" if overflows else ""
        return (
            f"Trace({self.layer!r} row {self.row} channel {self.channel}, {self.semantics}: {len(self.terms)} terms{lost}, "
            f"code {self.code} = {self.integer:.6g}; float {self.real:.6g}, fake-quant {self.fake:.6g})"
        )

    def __str__(self) -> str:
        """Return all steps as lines of text, long sums folded."""
        lines = [repr(self)]
        lines += [f"  {step}" for step in self.steps[: self.before]]
        for index in self.terms.folded():
            lines.append("  ..." if index is None else f"  term {index}: " + "; ".join(map(str, self.term(index)[-2:])))
        lines += [f"  {step}" + (f"  ({step.note})" if step.note else "") for step in self.steps[self.before :]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        heads = ("term", "input", "code", "integer", "weight", "code", "integer", "product", "partial sum")
        top = "".join(f"<th>{head}</th>" for head in heads)
        body = []
        for index in self.terms.folded():
            if index is None:
                body.append(f"<tr><td colspan='{len(heads)}'>…</td></tr>")
                continue
            t = self.terms
            cells = [
                index,
                "padding" if t.source[index] < 0 else f"{t.input_real[index]:.5g}",
                int(t.input_code[index]),
                int(t.input_integer[index]),
                f"{t.weight_real[index]:.5g}",
                int(t.weight_code[index]),
                int(t.weight_integer[index]),
                int(t.product[index]),
                f"{int(t.partial_sum[index])}" + (" overflow" if t.overflow[index] else ""),
            ]
            body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        steps = "".join(
            f"<tr><td>{escape(step.stage)}</td><td style='text-align:left'>{escape(step.name)}</td>"
            f"<td style='text-align:left'><code>{escape(step.formula)}</code></td><td>{step.result}</td>"
            f"<td style='text-align:left'>{escape(step.note)}</td></tr>"
            for step in self.steps
        )
        title = f"{self.layer}, row {self.row}, channel {self.channel}, {self.semantics}"
        ends = f"code {self.code} = {self.integer:.6g}; fake-quant {self.fake:.6g}; float {self.real:.6g}"
        return (
            f"<div class='workbench-trace'><b>{escape(title)}</b><table><tr>{top}</tr>{''.join(body)}</table>"
            f"<table><tr><th>stage</th><th>step</th><th>formula</th><th>result</th><th></th></tr>{steps}</table>"
            f"<p>{escape(ends)}</p></div>"
        )


def _written(value: Any) -> str:
    """Write a number so that it reads back exactly, negative ones in parentheses."""
    text = repr(value)
    return f"({text})" if text.startswith("-") else text
