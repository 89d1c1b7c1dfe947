"""What the worker measures for a session: sketches, exact errors, searches, and the whole model in the background.

Every function here runs on the worker and publishes under the session's lock, after asking whether anybody still
wants the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.panels.state import SMALLEST_CLIP, SketchShelf

if TYPE_CHECKING:
    from workbench.checkpoints import Layer
    from workbench.grids import Grid
    from workbench.panels.jobs import Job
    from workbench.panels.session import Session
    from workbench.quantization import ErrorReport, Sketch

Progress = Callable[[float], None]

#: Seconds between two batches of results: at most five a second reach the page.
BATCH_SECONDS = 0.2


def sketch_report(sketch: Sketch, grid: Grid, rule: str, clip: float) -> ErrorReport | None:
    """Return the error that a sketch can tell, or None.

    For ``mse`` it is the best shared clip's. None for percentile scales, and for clips below 1 where the sketch was
    made under rounded scales or zero points.
    """
    from workbench.quantization import best_clip, sketch_error

    if rule == "absmax" and (clip == 1.0 or sketch.clips_freely):
        return sketch_error(sketch, grid, clip=clip)
    if rule == "mse" and sketch.clips_freely:
        return sketch_error(sketch, grid, clip=min(clip, best_clip(sketch, grid).clip))
    return None


def sketch_of(session: Session, layer: Layer, job: Job, progress: Progress, grid: Grid | None = None) -> Sketch:
    """Return a layer's sketch for a grid (the session's) from memory, the disk cache, or its weights."""
    from workbench.quantization.sketch import sketch_for

    with session.lock:
        job.check()
        asked: Grid = session.grid if grid is None else grid
        granularity = session.granularity
        key = SketchShelf.key(layer, granularity, asked)
        found = session.shelf.get(key)
    if found is None:
        found = sketch_for(layer, asked, granularity, progress=progress)
        with session.lock:
            job.check()
            session.shelf.put(key, found)
    return found


def make_sketch(session: Session, job: Job) -> None:
    """Make the sketch of the present layer."""
    layer = session.layer
    if layer is None:
        return
    sketch = sketch_of(session, layer, job, job.progress)
    with session.lock:
        job.check()
        grid, rule, clip = session.grid, session.scale_rule, session.clip
    report = sketch_report(sketch, grid, rule, clip)  # not under the lock: the first call ever compiles
    with session.lock:
        job.check()
        session.show_sketch(sketch, report)


def exact_job(
    session: Session, layer: Layer, grid: Grid, *, granularity: str, rule: str, clip: float
) -> Callable[[Job], None]:
    """Return the job that measures a layer exactly, channel by channel; it needs the lock only to publish."""

    def make_exact(job: Job) -> None:
        from workbench.quantization import exact_error

        report = exact_error(
            layer, grid, granularity=granularity, scale=rule, clip=clip, per_channel=True, progress=job.progress
        )
        with session.lock:
            job.check()
            session.set_trait("exact", report)

    return make_exact


def best_exponent(session: Session, job: Job, layer: Layer) -> None:
    """Take the power grid of the present bits and rounding whose exponent errs least on the layer."""
    from workbench.grids import PowerGrid
    from workbench.quantization import search_exponent

    with session.lock:
        grid, clip = session.grid, session.clip
    rounding: Any = getattr(grid, "rounding", "power")
    found = sketch_of(session, layer, job, job.progress, PowerGrid(bits=grid.bits, rounding=rounding))
    best = search_exponent(found, grid.bits, clip=clip, rounding=rounding)
    with session.lock:
        job.check()
        session.set_grid(PowerGrid(bits=grid.bits, exponent=best.exponent, rounding=rounding))


def best_clip(session: Session, job: Job, layer: Layer) -> None:
    """Take the clip, shared by all groups, at which the present grid errs least on the layer."""
    from workbench.quantization import best_clip as find

    best = find(sketch_of(session, layer, job, job.progress), session.grid)
    with session.lock:
        job.check()
        session.clip = max(best.clip, SMALLEST_CLIP)


def warm_up(job: Job) -> None:
    """Compile, or load from numba's cache, the kernels that the first drag will need."""
    from workbench.kernels.warm import warm_up as warm

    warm(job.progress)


def sweep_errors(session: Session, job: Job) -> Generator[None, None, None]:
    """Fill ``layer_errors``: each layer's error at the present grid, from its sketch or, where that cannot tell, exact."""
    from workbench.quantization import exact_error

    with session.lock:
        grid, rule, clip = session.grid, session.scale_rule, session.clip
        granularity = session.granularity

    def measure(layer: Layer, progress: Progress) -> ErrorReport:
        report = None
        if not rule.startswith("percentile"):
            report = sketch_report(sketch_of(session, layer, job, progress), grid, rule, clip)
        if report is None:
            report = exact_error(layer, grid, granularity=granularity, scale=rule, clip=clip, progress=progress)
        return report

    return _for_all_layers(session, job, "layer_errors", "errors", measure)


def sweep_statistics(session: Session, job: Job) -> Generator[None, None, None]:
    """Fill ``layer_statistics``: moments and extremes of each layer's weights."""
    from workbench.quantization import weight_statistics

    def measure(layer: Layer, progress: Progress) -> dict[str, Any]:
        # Only the layer's own numbers: those of every channel of a 27B model would fill hundreds of megabytes.
        return weight_statistics(layer, progress=progress).to_dict()

    return _for_all_layers(session, job, "layer_statistics", "statistics", measure)


def _for_all_layers(
    session: Session, job: Job, trait: str, what: str, measure: Callable[[Layer, Progress], Any]
) -> Generator[None, None, None]:
    """Fill a trait (name -> result) for the layers it lacks, in batches; a step of the job is a layer."""
    with session.lock:
        job.check()
        model, names = session.model, session.measured_layers()
        todo = [name for name in names if name not in getattr(session, trait)]
    total = sum(model.layers[name].parameters for name in names) if model else 0
    done = total - sum(model.layers[name].parameters for name in todo) if model else 0
    batch: dict[str, Any] = {}
    failed: dict[str, str] = {}
    sent = time.monotonic()

    def publish() -> None:
        with session.lock:
            job.check()
            session.set_trait(trait, {**getattr(session, trait), **batch})
            if failed:
                session.set_trait("layer_failures", {**session.layer_failures, **failed})
        batch.clear()
        failed.clear()

    for number, name in enumerate(todo, start=len(names) - len(todo) + 1):
        layer = model.layers[name] if model else None
        if layer is None:
            return
        label = f"{what} of all layers: {number} of {len(names)}"
        start, share = done, layer.parameters

        def progress(fraction: float, *_: Any, start: int = start, share: int = share, label: str = label) -> None:
            job.progress((start + share * fraction) / max(total, 1), label)

        try:
            batch[name] = measure(layer, progress)
        except WorkbenchError as error:
            job.check()
            failed[name] = str(error)
        done += share
        if time.monotonic() - sent >= BATCH_SECONDS:
            publish()
            sent = time.monotonic()
        job.progress(done / max(total, 1), label)
        yield
    publish()
