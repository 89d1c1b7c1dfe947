"""Quantize whole models for the command line: read the recipe and texts, run, measure, print."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from workbench.errors import RecipeError, WorkbenchError
from workbench.grids.text import brief_grid
from workbench.shell.show import number

if TYPE_CHECKING:
    from workbench.calibration.data import Calibration
    from workbench.checkpoints import Model
    from workbench.evaluation import Evaluation
    from workbench.methods.model_result import QuantizedModel
    from workbench.quantization.recipe import Recipe

#: A text to calibrate on is no longer than this.
MAX_TEXT_BYTES = 1 << 30


def read_recipe(text: str) -> Recipe:
    """Return the recipe of a YAML file, or the preset of a name.

    Raises:
        RecipeError: neither a file nor a preset; what is wrong in the file, with its line.
    """
    from workbench.quantization.recipe import Recipe

    path = Path(text)
    if path.is_file() or path.suffix.lower() in {".yaml", ".yml"}:
        return Recipe.load(path)
    try:
        return Recipe.of(text)
    except RecipeError as error:
        message = f"{error}; a recipe in a file is named by its path, e.g. recipe.yaml"
        raise RecipeError(message) from None


def read_texts(paths: list[Path]) -> list[str]:
    """Return the texts of files.

    Raises:
        WorkbenchError: a file that cannot be read, or is no text.
    """
    texts = []
    for path in paths:
        try:
            if path.stat().st_size > MAX_TEXT_BYTES:
                message = (
                    f"{str(path)!r} is longer than {MAX_TEXT_BYTES >> 30} GiB; calibration takes a few thousand words"
                )
                raise WorkbenchError(message)
            texts.append(path.read_text(encoding="utf-8"))
        except OSError as error:
            message = f"the text {str(path)!r} cannot be read: {error.strerror or error}"
            raise WorkbenchError(message) from None
        except UnicodeDecodeError:
            message = f"{str(path)!r} is not UTF-8 text"
            raise WorkbenchError(message) from None
    return texts


def quantize_source(
    source: str,
    recipe: Recipe,
    output: Path,
    *,
    texts: list[Path] | None,
    samples: int | None,
    length: int | None,
    device: str,
    seed: int,
    sequential: bool,
    progress: Callable[[float, str], None],
) -> QuantizedModel:
    """Run ``quantize_model`` on what the command line says.

    Raises:
        WorkbenchError: a number out of its range; see also ``quantize_model``.
    """
    from workbench.checkpoints import open_model
    from workbench.methods.runner import needs_inputs, quantize_model
    from workbench.resources import resolve_source

    for word, value, least in (("samples", samples, 1), ("length", length, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            message = f"--{word} is a whole number of at least {least}, not {value}"
            raise WorkbenchError(message)
    model = open_model(resolve_source(source))
    try:
        calibration = None
        if texts or needs_inputs(model, recipe):
            progress(0.0, "reading calibration inputs")
            calibration = _calibration(model, texts, samples, length, seed)
        return quantize_model(
            model,
            recipe,
            calibration,
            output=output,
            device=device,
            seed=seed,
            sequential=sequential,
            progress=progress,
        )
    finally:
        model.close()


def _calibration(
    model: Model, texts: list[Path] | None, samples: int | None, length: int | None, seed: int
) -> Calibration:
    from workbench.calibration.data import Calibration

    sizes: dict[str, Any] = {} if samples is None else {"samples": samples}
    if model.config.get("model_type") == "tiny_resnet":
        if texts or length is not None:
            message = f"{model.name} looks at images: --texts and --length are for language models"
            raise WorkbenchError(message)
        return Calibration.from_images(model, seed=seed, **sizes)
    sizes |= {} if length is None else {"length": length}
    return Calibration.from_texts(model, read_texts(texts) if texts else None, seed=seed, **sizes)


def measure(result: QuantizedModel, source: str, progress: Callable[[float, str], None]) -> dict[str, Evaluation]:
    """Measure the float and the quantized model."""
    from workbench.checkpoints import open_model
    from workbench.evaluation.evaluate import evaluate
    from workbench.resources import resolve_source

    model = open_model(resolve_source(source))
    try:
        plain = evaluate(model, progress=lambda fraction, label: progress(0.4 * fraction, label))
        found = evaluate(
            result, reference=model, progress=lambda fraction, label: progress(0.4 + 0.6 * fraction, label)
        )
    finally:
        model.close()
    return {"float": plain, "quantized": found}


def is_whole(output: Path) -> bool:
    """Say whether a folder holds a finished model."""
    return (output / "config.json").is_file()


def stopped(output: Path) -> str:
    """Return what a person is told after Ctrl-C: what is kept, and how to go on."""
    if is_whole(output):
        return f"Stopped; the quantized model in {output} is whole: the same command measures it."
    if any(output.glob("partial/layer-*")):
        return f"Stopped; finished layers are kept in {output}: the same command goes on from there."
    return "Stopped before a layer was finished; the same command starts again."


def layers_table(result: QuantizedModel, source: str, output: Path) -> Group:
    """Return the table of the layers: method, grid, bits, error and gain over rounding to nearest.

    What is the same for all layers is said once, above: names and numbers then fit into a terminal of 80 columns.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    title = f"{source}, {result.recipe.name or 'own recipe'} -> {output}"
    told = {
        name: {
            "method": report["row"]["method"],
            "grid": brief_grid(report["row"]["grid"]),
            "scales": report["row"]["granularity"],
            "inputs": report["activation"] or "float",
        }
        for name, report in result.reports.items()
    }
    kinds = {
        word: dict.fromkeys(each[word] for each in told.values()) for word in ("method", "grid", "scales", "inputs")
    }
    shared = [f"{word} {next(iter(values))}" for word, values in kinds.items() if len(values) == 1]
    if shared:
        title += f"\nevery layer: {', '.join(shared)}"
    columns = [word for word, values in kinds.items() if len(values) > 1]
    table.add_column("layer", overflow="fold")
    for header in columns:
        table.add_column(header, overflow="fold")
    for header in ("bits", "SQNR dB", "over RTN dB", "seconds"):
        table.add_column(header, justify="right", no_wrap=True, min_width=len(header))
    for name, report in result.reports.items():
        row = report["row"]
        table.add_row(
            name,
            *(told[name][word] for word in columns),
            f"{row['bits_per_weight']:.3f}",
            number(row["sqnr_db"], ".2f"),
            number(row["gain_db"], "+.2f"),
            f"{row['seconds']:.2f}",
        )
    what = "outputs" if result.calibration else "weights (nothing was run)"
    caption = (
        f"{len(result.reports)} layers, {result.bits_per_weight:.4g} bits per weight, {result.nbytes / 2**20:,.1f} MiB in "
        f"all; SQNR of the {what}" + "".join(f"\n{note}" for note in dict.fromkeys(result.notes))
    )
    return Group(Text(title, style="bold"), table, Text(caption, style="italic"))


def measures_table(measured: dict[str, Evaluation]) -> Table:
    """Return the table of metrics, the models side by side, each figure with its standard error."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for name in measured:
        table.add_column(name, justify="right", no_wrap=True)
    metrics = dict.fromkeys(row.metric for each in measured.values() for row in each.rows)
    for metric in metrics:
        cells = []
        for each in measured.values():
            row = {row.metric: row for row in each.rows}.get(metric)
            if row is None:
                cells.append("–")
            else:
                spread = f" ± {row.standard_error:.2g}" if math.isfinite(row.standard_error) else ""
                cells.append(f"{row.value:.5g}{spread}")
        table.add_row(metric, *cells)
    return table


def summary(
    result: QuantizedModel, source: str, output: Path, measured: dict[str, Evaluation] | None
) -> dict[str, Any]:
    """Return everything as plain numbers."""
    return {
        "source": source,
        "output": str(output),
        "recipe": result.recipe.to_dict(),
        "seed": result.seed,
        "calibration": result.calibration,
        "bits_per_weight": result.bits_per_weight,
        "bytes": result.nbytes,
        "notes": list(result.notes),
        "layers": [{**report["row"], "activation": report["activation"]} for report in result.reports.values()],
        "metrics": None
        if measured is None
        else {name: {row.metric: vars(row) for row in each.rows} for name, each in measured.items()},
    }


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """Show a progress bar on standard error (in a terminal only); yield what takes the fraction and a label."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("quantizing", total=1.0)

        def advance(fraction: float, label: str) -> None:
            bar.update(task, completed=fraction, description=label or "quantizing")

        yield advance
