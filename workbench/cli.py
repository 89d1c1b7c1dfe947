"""The workbench from a shell: ``lab``, ``app``, ``inspect``, ``error``, ``quantize``, ``recipe``, ``judge``; also as ``jupyter workbench``.

Exit codes: 0 done, 1 a judge disagrees where none may, 2 the person asked for something that cannot be (one sentence on standard error says what and why).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

import workbench
from workbench.errors import WorkbenchError

DISAGREEMENT = 1
USER_ERROR = 2
INTERRUPTED = 130
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="workbench",
    help="See what quantization does to a neural network: live, exact, on real weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder with safetensors, a .safetensors, .gguf or .pt file, a Hugging Face id, or demo:NAME "
        "(demo:tiny-gemma3, demo:tiny-resnet, demo:all-MiniLM-L6-v2).",
    ),
]
GridText = Annotated[
    str, typer.Option("--grid", help="e.g. uniform:bits=4, power:bits=4,exponent=0.55, nf4, mxfp4.", metavar="GRID")
]
GranularityText = Annotated[
    str, typer.Option("--granularity", help="What shares one scale: tensor, channel, or group:128.", metavar="WORD")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, and nothing else.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"workbench {workbench.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """See what quantization does to a neural network: live, exact, on real weights."""


@app.command("lab", context_settings=PASS_ON)
def lab(context: typer.Context) -> None:
    """Start JupyterLab on the workbench's notebook, in the current folder; further arguments go to JupyterLab."""
    _start("lab", context.args)


@app.command("app", context_settings=PASS_ON)
def voila_app(context: typer.Context) -> None:
    """Start the workbench as a web application (Voilà), without code cells; further arguments go to Voilà."""
    _start("app", context.args)


def _start(kind: Literal["lab", "app"], extra: Sequence[str]) -> None:
    from workbench.shell import launch

    notebooks = launch.copy_notebooks(Path.cwd())
    for name in notebooks.copied:
        typer.echo(f"{name} copied into {notebooks.folder}", err=True)
    for name in notebooks.kept:
        typer.echo(f"{name} is here already and differs from the installed one: yours is kept as it is", err=True)
    launch.replace_process(launch.command(kind, notebooks.folder, extra))


@app.command("inspect")
def inspect_model(
    source: Source,
    *,
    layer: Annotated[
        str | None,
        typer.Option("--layer", help="Only layers of this pattern, e.g. '*.mlp.down_proj'.", metavar="PATTERN"),
    ] = None,
    grid: GridText = "uniform:bits=4",
    granularity: GranularityText = "channel",
    as_json: AsJson = False,
) -> None:
    """Print a model's tree: shapes, outlier statistics, and each layer's exact error on a grid."""
    from workbench.checkpoints import open_model
    from workbench.grids import parse_grid
    from workbench.quantization.granularity import parse_granularity
    from workbench.resources import DEMO_PREFIX, resolve_source
    from workbench.shell import measure, show

    chosen, shared = parse_grid(grid), str(parse_granularity(granularity))
    model = open_model(resolve_source(source))
    try:
        layers = measure.choose_layers(model, layer)
        with show.progress_bar(sum(each.parameters for each in layers)) as advance:
            records = measure.measure_model(layers, chosen, shared, advance)
        summary = measure.totals(records)
        name = source.removeprefix(DEMO_PREFIX) if source.startswith(DEMO_PREFIX) else model.name
        if as_json:
            head = {"source": source, "model": name, "grid": str(chosen), "granularity": shared}
            _write_json({**head, "layers": records, "total": summary})
        else:
            show.make_console().print(show.tree_table(name, records, summary, str(chosen), shared))
    finally:
        model.close()


@app.command("error")
def layer_error(
    source: Source,
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="The layer's full name, as inspect prints it.")],
    *,
    grid: GridText,
    granularity: GranularityText = "channel",
    scale: Annotated[
        str, typer.Option("--scale", help="The scale rule: absmax, percentile:99.9, or mse.", metavar="RULE")
    ] = "absmax",
    clip: Annotated[
        float,
        typer.Option("--clip", help="The fraction of the largest weight that the scale keeps, above 0 and up to 1."),
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Print the exact reconstruction error of one layer on one grid."""
    from workbench.checkpoints import open_model
    from workbench.grids import parse_grid
    from workbench.resources import resolve_source
    from workbench.shell import measure, show

    if not 0.0 < clip <= 1.0:
        raise WorkbenchError(f"clip is a fraction above 0 and up to 1, not {clip:g}")
    chosen = parse_grid(grid)
    model = open_model(resolve_source(source))
    try:
        record = measure.measure_error(model[layer], chosen, granularity, scale, clip)
    finally:
        model.close()
    if as_json:
        _write_json({"source": source, **record})
    else:
        show.make_console().print(show.error_table(record))


@app.command("quantize")
def quantize_source(
    source: Source,
    *,
    recipe: Annotated[
        str,
        typer.Option("--recipe", help="A YAML file, or a preset's name (see workbench recipe).", metavar="RECIPE"),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            help="A new or empty folder for the quantized model; the same line goes on after a stop.",
            metavar="FOLDER",
        ),
    ],
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            "--texts",
            help="A text file to calibrate on (may be given several times); by default shipped text.",
            metavar="FILE",
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Calibration texts, or images.")] = None,
    length: Annotated[int | None, typer.Option("--length", help="Tokens of one calibration text.")] = None,
    device: Annotated[str, typer.Option("--device", help="Where it runs: cpu, cuda, mps.", metavar="DEVICE")] = "cpu",
    seed: Annotated[int, typer.Option("--seed", help="The seed of every random choice.")] = 0,
    sequential: Annotated[
        bool,
        typer.Option("--sequential", help="Look at each layer's inputs anew after the layers before it in its block."),
    ] = False,
    measure: Annotated[
        bool, typer.Option("--evaluate", help="Measure the quantized and the float model side by side at the end.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a whole model by a recipe and write it; after Ctrl-C or a kill the same line goes on where it was."""
    from workbench.shell import quantize
    from workbench.shell.show import make_console

    measured, before = None, quantize.is_whole(output)
    with quantize.progress_bar() as advance:
        try:
            result = quantize.quantize_source(
                source,
                quantize.read_recipe(recipe),
                output,
                texts=texts,
                samples=samples,
                length=length,
                device=device,
                seed=seed,
                sequential=sequential,
                progress=advance,
            )
            if measure:
                measured = quantize.measure(result, source, advance)
        except KeyboardInterrupt:
            typer.echo(quantize.stopped(output), err=True)
            raise typer.Exit(INTERRUPTED) from None
    if before:
        typer.echo(f"{output} was finished by this very command before: nothing was computed anew.", err=True)
    if as_json:
        _write_json(quantize.summary(result, source, output, measured))
        return
    console = make_console()
    console.print(quantize.layers_table(result, source, output))
    if measured is not None:
        console.print(quantize.measures_table(measured))


@app.command("recipe")
def print_recipe(
    name: Annotated[
        str | None, typer.Argument(metavar="PRESET", help="A preset's name; without it they are listed.")
    ] = None,
) -> None:
    """Print a preset as YAML to start a recipe from, or list the presets."""
    from workbench.quantization.recipe import PRESETS, Recipe
    from workbench.quantization.recipe_file import recipe_text

    if name is None:
        for preset in PRESETS.values():
            changes = f"  after {', '.join(preset.transforms)}" if preset.transforms else ""
            typer.echo(f"{preset.name:<18} {'; '.join(map(str, preset.entries))}{changes}")
        return
    typer.echo(recipe_text(Recipe.of(name)), nl=False)


@app.command("judge")
def judge(
    *,
    semantics: Annotated[
        list[str] | None,
        typer.Option("--semantics", help="Only this semantics (may be given several times).", metavar="NAME"),
    ] = None,
    operator: Annotated[
        list[str] | None,
        typer.Option("--operator", help="Only operators that start with this word, e.g. conv2d.", metavar="WORD"),
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge", help="Only this judge: tflm, litert, litert-default, onnxruntime, onnx, torch, tosa, ..."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The seed of the random layers.")] = 0,
    models: Annotated[int, typer.Option("--models", help="Random layers per row.")] = 12,
    tosa_python: Annotated[
        str | None,
        typer.Option(
            "--tosa-python",
            help="An interpreter of an environment that has tosa-tools.",
            envvar="WORKBENCH_TOSA_PYTHON",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare integer operators with every installed runtime on random layers; exit code 1 where one must agree and does not."""
    from workbench.integer.judges import run_judges
    from workbench.shell import judge as shown
    from workbench.shell.show import make_console

    with shown.progress_bar() as advance:
        table = run_judges(
            semantics or None,
            operator or None,
            seed,
            models,
            judges=judges or None,
            tosa_python=tosa_python,
            progress=advance,
        )
    if as_json:
        _write_json(table.to_dict())
    else:
        console = make_console()
        console.print(shown.judge_table(table))
        for line in shown.remarks(table):
            console.print(line, soft_wrap=True)
    if not table.kept:
        raise typer.Exit(DISAGREEMENT)


def _write_json(value: object) -> None:
    from workbench.shell.measure import json_ready

    typer.echo(json.dumps(json_ready(value), indent=1, allow_nan=False, ensure_ascii=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code (``sys.argv`` without arguments)."""
    try:
        typer.main.get_command(app)(args=None if arguments is None else list(arguments), prog_name="workbench")
    except WorkbenchError as error:
        typer.echo(f"Error: {error}", err=True)
        return USER_ERROR
    except OSError as error:  # the output's disk is full, say; a closed pipe is the shell's own business before this
        typer.echo(f"Error: {error.strerror or error}", err=True)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    return 0


if __name__ == "__main__":
    sys.exit(main())
