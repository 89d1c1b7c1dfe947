"""What the evaluate panel shows: the picked figures of the float model and of the recipe's, and texts side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import traitlets

from workbench.errors import QuantizationError
from workbench.panels.long_run import LongRun, duration
from workbench.panels.recipe_state import RecipeState
from workbench.panels.state import Checked

if TYPE_CHECKING:
    from workbench.checkpoints import Model
    from workbench.evaluation.evaluate import Evaluation
    from workbench.evaluation.generation import Generated
    from workbench.panels.jobs import Job
    from workbench.panels.session import Session

#: Figures that are ticked at first, for each kind of model.
FIRST = {
    "causal": ("perplexity", "kl", "top1"),
    "classifier": ("accuracy", "kl", "top1"),
    "encoder": ("neighbours", "cosine", "spearman"),
}
#: Share of the progress that quantizing takes when the recipe was not run yet.
QUANTIZING = 0.5
LONGEST_PROMPT = 4000


def _read_metrics(state: Any, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        message = f"metrics are a list of names such as ['perplexity', 'kl'], not {str(value)[:60]!r}"
        raise QuantizationError(message)
    known = state.offered()
    for name in value:
        if name not in known:
            message = f"this model has no metric called {str(name)[:40]!r} (it has {', '.join(known)})"
            raise QuantizationError(message)
    return tuple(name for name in known if name in value)


def _read_count(name: str, least: int, most: int) -> Any:
    def read(_state: Any, value: Any) -> int:
        try:
            count = least - 1 if isinstance(value, bool) else int(value)
        except (TypeError, ValueError, OverflowError):
            count = least - 1
        if count != value or not least <= count <= most:
            message = f"{name} is a whole number from {least:,} to {most:,}, not {str(value)[:40]!r}"
            raise QuantizationError(message)
        return count

    return read


def _read_prompt(_state: Any, value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_PROMPT:
        message = f"a prompt is a text of at most {LONGEST_PROMPT:,} characters"
        raise QuantizationError(message)
    return value


class EvaluateState(LongRun):
    """Figures and texts of the float model beside the recipe's; get it by ``EvaluateState.of(session)``."""

    kind: ClassVar[str] = "evaluate"

    metrics = Checked((), _read_metrics)
    """Names of the figures to measure, keys of ``METRICS``."""
    limit = Checked(4096, _read_count("the number of tokens", 64, 10_000_000))
    """About how many tokens of text are scored at most (language models)."""
    prompt = Checked("def read_lines(path):\n", _read_prompt)
    """What both models continue."""
    tokens = Checked(40, _read_count("the number of new tokens", 1, 1000))
    """How many tokens each writes at most."""

    float_figures: Evaluation | None = traitlets.Any(None, read_only=True)  # pyright: ignore[reportAssignmentType]
    """Of the float model."""
    figures: Evaluation | None = traitlets.Any(None, read_only=True)  # pyright: ignore[reportAssignmentType]
    """Of the recipe's model."""
    measured_as: str = traitlets.Unicode("", read_only=True)  # pyright: ignore[reportAssignmentType]
    """The recipe that ``figures`` belong to, as text."""
    written: Generated | None = traitlets.Any(None, read_only=True)  # pyright: ignore[reportAssignmentType]
    """Both continuations of the prompt."""
    written_as: str = traitlets.Unicode("", read_only=True)  # pyright: ignore[reportAssignmentType]
    """The recipe that ``written`` belongs to, as text."""

    def __init__(self, session: Session) -> None:
        self._float_key: Any = None
        super().__init__(session)
        self.recipe = RecipeState.of(session)
        self._pick_first()

    def model_kind(self) -> str:
        """Return what the session's model is: ``causal``, ``classifier``, ``encoder``; empty without a model."""
        return kind_of(self.session.model)

    def offered(self) -> tuple[str, ...]:
        """Return the names of the figures that the session's model has."""
        from workbench.evaluation.metrics import METRICS

        kind: Any = self.model_kind()
        return tuple(name for name, metric in METRICS.items() if kind in metric.kinds and name != "sts")

    def _pick_first(self) -> None:
        self.metrics = FIRST.get(self.model_kind(), ())

    def to_spec(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        with self.lock:
            return {name: getattr(self, name) for name in ("limit", "prompt", "tokens")} | {
                "metrics": list(self.metrics)
            }

    # ------------------------------------------------------------------ running

    def start(self) -> None:
        """Measure the float model and the recipe's (quantizing first where that was not done yet)."""
        with self.lock:
            model = self.session.model
            if model is None:
                self.complain("open a model first: figures belong to a model")
                return
            if not self.metrics:
                self.complain("choose at least one figure to measure")
                return
            metrics, limit = self.metrics, self.limit
        self.begin(lambda job: self._measure(job, model, metrics, limit), f"evaluating {model.name}")

    def write(self) -> None:
        """Let the float model and the recipe's continue the prompt."""
        with self.lock:
            model = self.session.model
            if model is None or self.model_kind() != "causal":
                self.complain("only a language model continues a prompt: open one first")
                return
            if not self.prompt.strip():
                self.complain("type a prompt for both models to continue")
                return
            prompt, tokens = self.prompt, self.tokens
        self.begin(lambda job: self._write(job, model, prompt, tokens), f"writing with {model.name}")

    def _measure(self, job: Job, model: Any, metrics: tuple[str, ...], limit: int) -> str:
        from workbench.evaluation.evaluate import evaluate
        from workbench.evaluation.metrics import METRICS

        quantized, text, start = self._quantized(job, model)
        alone = tuple(name for name in metrics if not METRICS[name].reference)
        key = (id(model), alone, limit)
        half = start + (1.0 - start) * 0.4
        if alone and (self._float_key != key or self.float_figures is None):
            found = evaluate(model, metrics=alone, limit=limit, progress=self._part(job, start, half, "float"))
            with self.lock:
                job.check()
                self._float_key = key
                self.set_trait("float_figures", found)
        elif not alone:
            with self.lock:
                self.set_trait("float_figures", None)
        found = evaluate(
            quantized, reference=model, metrics=metrics, limit=limit, progress=self._part(job, half, 1.0, "recipe")
        )
        with self.lock:
            job.check()
            self.set_trait("measured_as", text)
            self.set_trait("figures", found)
        return f"{len(metrics)} figures in {duration(self.seconds_so_far())}"

    def _write(self, job: Job, model: Any, prompt: str, tokens: int) -> str:
        from workbench.evaluation.generation import generate_side_by_side

        quantized, text, start = self._quantized(job, model)
        tell = self._part(job, start, 1.0, "both models")
        (found,) = generate_side_by_side(
            model, quantized, [prompt], tokens=tokens, progress=lambda fraction: tell(fraction, "writing")
        )
        with self.lock:
            job.check()
            self.set_trait("written_as", text)
            self.set_trait("written", found)
        return f"{len(found.tokens)} tokens in {duration(self.seconds_so_far())}"

    def _quantized(self, job: Job, model: Any) -> tuple[Any, str, float]:
        """Return the recipe's model, the recipe's text, and how much of the progress that took."""
        recipe = self.recipe
        with self.lock:
            making, fresh = recipe.making(), recipe.fresh
            made = recipe.quantized
        if not fresh:
            made = recipe.make(job, model, making, self._part(job, 0.0, QUANTIZING, "quantizing"))
        return made, str(making[0]), 0.0 if fresh else QUANTIZING

    def _part(self, job: Job, start: float, end: float, what: str) -> Any:
        """Return a listener that fills a part of the progress."""

        def tell(fraction: float, label: str = "") -> None:
            self.tell(job, start + (end - start) * fraction, f"{what}: {label}" if label else what)

        return tell

    def forget(self) -> None:
        """Drop what belongs to the model before."""
        self._float_key = None
        for name in ("float_figures", "figures", "written"):
            self.set_trait(name, None)
        self._pick_first()

    def kept(self) -> str:
        """Say that earlier figures stay."""
        return "earlier figures kept" if self.figures is not None else ""


def kind_of(model: Model | None) -> str:
    """Return what a model is by what its configuration names, without loading it; empty for none.

    ``evaluate`` looks at the loaded module itself; this only decides which figures are offered.
    """
    if model is None:
        return ""
    config: Mapping[str, Any] = model.config
    if config.get("model_type") == "tiny_resnet":
        return "classifier"
    names = [str(name) for name in config.get("architectures") or []]
    if any(name.endswith("Classification") for name in names):
        return "classifier"
    if any(name.endswith(("CausalLM", "LMHeadModel", "ConditionalGeneration")) for name in names):
        return "causal"
    return "encoder" if any(name.endswith("Model") for name in names) else "causal"
