"""``evaluate``: one call, the figures that make sense for a model, each with its standard error; ``compare``: side by side.

found = evaluate(quantized, reference="demo:tiny-gemma3")
found["perplexity"].value, found["kl"].standard_error
compare({"float": evaluate("demo:tiny-gemma3"), "RTN": found})
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.evaluation.metrics import (
    DATA,
    METRICS,
    EvaluationRow,
    Question,
    chosen_metrics,
    measure,
)
from workbench.evaluation.subject import Kind, subject

if TYPE_CHECKING:
    import pandas as pd

#: Told (finished fraction, label); may raise ``Cancelled``.
Progress = Callable[[float, str], Any]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The figures of one model.

    Attributes:
        name: of the model.
        kind: what it is: ``causal``, ``encoder`` or ``classifier``.
        rows: one a metric.
        details: what the rows were read from (``perplexity``, ``divergence``, ``last_word``, ``accuracy``, ``similarity``):
            each token's divergence, each passage's hit, for comparisons in pairs.
    """

    name: str
    kind: Kind
    rows: tuple[EvaluationRow, ...]
    details: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __getitem__(self, metric: str) -> EvaluationRow:
        for row in self.rows:
            if row.metric == metric:
                return row
        measured = [row.metric for row in self.rows]
        near = difflib.get_close_matches(str(metric), measured, n=1)
        meant = f", did you mean {near[0]}?" if near else ""
        message = f"{self.name} was not measured by {str(metric)[:40]!r}{meant} (measured: {', '.join(measured)})"
        raise WorkbenchError(message)

    def __contains__(self, metric: object) -> bool:
        return any(row.metric == metric for row in self.rows)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a metric: value, standard_error, count, unit, clusters."""
        import pandas as pd

        return pd.DataFrame([vars(row) for row in self.rows]).set_index("metric")

    def __repr__(self) -> str:
        lines = [f"  {row.metric:<22} {_shown(row)}  ({row.count:,}; {row.clusters})" for row in self.rows]
        return "\n".join([f"Evaluation({self.name}, {self.kind})", *lines])

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{name}</th>" for name in ("metric", "value ± standard error", "over", "independent"))
        rows = "".join(
            f"<tr><td style='text-align:left'>{escape(METRICS[row.metric].title)}</td><td>{escape(_shown(row))}</td>"
            f"<td>{row.count:,}</td><td style='text-align:left'>{escape(row.clusters)}</td></tr>"
            for row in self.rows
        )
        return f"<b>{escape(self.name)}</b><table class='workbench-evaluation'><tr>{heads}</tr>{rows}</table>"


def evaluate(
    model: Any,
    *,
    reference: Any = None,
    metrics: str | Iterable[str] | None = None,
    data: Any = None,
    tokenizer: Any = None,
    kind: Kind | None = None,
    window: int = 512,
    limit: int | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Evaluation:
    """Measure a model by the metrics that make sense for it, or by chosen ones.

    A causal language model: perplexity, last word, and against a reference the perplexity's ratio, KL divergence and
    agreement. A classifier: accuracy, and against a reference its change, KL and agreement. A sentence encoder: whether
    neighbouring sentences are nearer than strangers, and against a reference cosine and rank correlation.

    Args:
        model: a source (path, ``demo:NAME``, Hub id), an opened ``Model``, a torch module, a quantized model (anything with
            ``module()``), an ``IntegerModel``, or a function of arrays.
        reference: the float model, likewise.
        metrics: names (keys of ``METRICS``); None takes all that make sense.
        data: what it is measured on: texts or sequences of token ids (causal), pairs of sentences, or (one, other, score)
            with people's scores (encoder), (inputs, labels) (classifier); or a mapping of these parts by name: ``texts``,
            ``passages`` (see ``last_word``), ``pairs``, ``inputs``. What is not given is what ships with the workbench.
        tokenizer: by default the model's own, else the reference's.
        kind: ``causal``, ``encoder`` or ``classifier`` where the model does not tell.
        window: most tokens that a causal model sees at once.
        limit: about how many tokens of text are scored at most; None scores all.
        progress: told the finished fraction and a label; may raise ``Cancelled``.
        seed: of bootstraps, and of the draw of shipped sentence pairs.

    Raises:
        WorkbenchError: a metric that does not exist or does not fit, or data that cannot be measured on.
        CheckpointError: a source that cannot be run.
    """
    tell = progress or (lambda fraction, label: None)
    against = None if reference is None else subject(reference, tokenizer=tokenizer, kind=kind, progress=tell)
    measured = subject(model, tokenizer=tokenizer, kind=kind, like=against, progress=tell)
    if against is not None and against.kind != measured.kind:
        message = (
            f"a model of kind {measured.kind} is compared with one of its kind, not with one of kind {against.kind}"
        )
        raise WorkbenchError(message)
    parts = _parts(data, measured.kind)
    wanted = chosen_metrics(
        metrics,
        measured.kind,
        has_reference=against is not None,
        has_scores=_scored(parts.get("pairs")),
        has_tokenizer=measured.tokenizer is not None,
    )
    if metrics is None and parts.get("pairs") is not None:
        wanted = [each for each in wanted if each.name != "neighbours"]  # that is of the shipped pairs
    if not wanted:
        message = f"nothing can be measured of {measured.name} on this data alone: give reference= the float model"
        raise WorkbenchError(message)
    sources = list(dict.fromkeys(each.source for each in wanted))
    rows: dict[str, EvaluationRow] = {}
    details: dict[str, Any] = {}
    for number, source in enumerate(sources):
        share = [each for each in wanted if each.source == source]
        label = METRICS[share[0].name].title

        def step(fraction: float, number: int = number, label: str = label) -> None:
            tell((number + fraction) / len(sources), f"{measured.name}: {label}")

        step(0.0)
        question = Question(measured, against, parts, window, limit, seed, step)
        found, results = measure(source, question, share)
        rows.update(found)
        details.update(results)
    tell(1.0, measured.name)
    return Evaluation(measured.name, measured.kind, tuple(rows[each.name] for each in wanted), details)


def compare(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Return evaluations side by side: one row a metric, for each model its value and standard error.

    Args:
        evaluations: by the name that heads its columns.

    Raises:
        WorkbenchError: nothing to compare.
    """
    import pandas as pd

    if not isinstance(evaluations, Mapping) or not evaluations:
        message = "compare takes a mapping of names to evaluations, at least one"
        raise WorkbenchError(message)
    measured = {row.metric for each in evaluations.values() for row in each.rows}
    names = [name for name in METRICS if name in measured]
    columns: dict[tuple[str, str], list[float]] = {}
    for head, each in evaluations.items():
        found = {row.metric: row for row in each.rows}
        columns[head, "value"] = [found[name].value if name in found else math.nan for name in names]
        columns[head, "standard_error"] = [found[name].standard_error if name in found else math.nan for name in names]
    frame = pd.DataFrame(columns, index=pd.Index(names, name="metric"))
    frame.columns = pd.MultiIndex.from_tuples(list(columns), names=["model", "figure"])
    return frame


def _parts(data: Any, kind: Kind) -> dict[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        return {DATA[kind][0]: data}
    for name in data:
        if name not in DATA[kind]:
            near = difflib.get_close_matches(str(name), DATA[kind], n=1)
            meant = f", did you mean {near[0]}?" if near else ""
            message = (
                f"a model of kind {kind} is not measured on {str(name)[:40]!r}{meant} (parts: {', '.join(DATA[kind])})"
            )
            raise WorkbenchError(message)
    return dict(data)


def _scored(pairs: Any) -> bool:
    """Say whether pairs of sentences come with scores.

    Raises:
        WorkbenchError: they are no pairs.
    """
    if pairs is None:
        return False
    sizes = {len(each) if isinstance(each, tuple | list) else 0 for each in pairs}
    if sizes not in ({2}, {3}):
        message = "an encoder is measured on pairs of sentences: [(one, other), ...] or [(one, other, score), ...]"
        raise WorkbenchError(message)
    return sizes == {3}


def _shown(row: EvaluationRow) -> str:
    """Return value and standard error with as many digits as the error allows; shares in per cent."""
    factor, mark = (100.0, " %") if row.unit == "share" else (1.0, "")
    value, error = factor * row.value, factor * row.standard_error
    unit = "" if row.unit in {"share", "ratio", "cosine", "correlation"} else f" {row.unit}"
    if not math.isfinite(error) or error <= 0.0:
        return f"{value:.5g}{mark}{unit}"
    digits = max(0, min(10, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f}{mark} ± {error:.{digits}f}{mark}{unit}"
