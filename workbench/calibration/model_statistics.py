"""Statistics of a float model's layers in one walk, kept on disk as they are found."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from workbench.calibration.block import NEEDS
from workbench.calibration.data import Calibration
from workbench.calibration.hosts import model_key, opened
from workbench.calibration.statistics import LayerStatistics
from workbench.calibration.statistics_cache import (
    keep_blocks,
    keep_statistics,
    kept_blocks,
    kept_statistics,
    key_of,
)
from workbench.calibration.stream import BlockStream
from workbench.checkpoints import Model
from workbench.errors import CheckpointError, LayerNotFoundError


def layer_statistics(
    model: Any,
    calibration: Calibration | None = None,
    *,
    layers: str | Iterable[str] = "*",
    needs: Iterable[str] = ("moments",),
    rows: int = 1024,
    seed: int = 0,
    device: str = "cpu",
    folder: str | Path | None = None,
    memory: int | None = None,
    cache: bool = True,
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, LayerStatistics]:
    """Return the statistics of a float model's layers, block by block.

    What was found is kept on disk, keyed by the model's and the calibration's content: a second call does not run the model,
    and after a kill only hidden states are computed up to the first block that is missing.

    Args:
        model: a ``Model``, what ``open_model`` takes, or ``demo:NAME``.
        calibration: the inputs; by default ``Calibration.from_texts(model)``, or the training digits of tiny-resnet.
        layers: a shell pattern over the layers' names, or several.
        needs: of ``moments``, ``gram``, ``inputs``, ``fisher``; ``gap`` adds nothing to a single stream.
        rows: sampled rows at most (``inputs``).
        seed: of the sample.
        device: where blocks run.
        folder: where hidden states go that do not fit into ``memory``.
        memory: bytes of hidden states that may stay in memory.
        cache: whether to look for kept statistics and keep new ones.
        progress: told the finished fraction and the block's name; may raise ``Cancelled``: what was found is kept.

    Returns:
        Statistics by layer name, in the order of the computation. A layer that no input reached is missing.

    Raises:
        CheckpointError: the model cannot run on these inputs, or there is no such need.
        LayerNotFoundError: no layer that the calibration runs through has such a name.
    """
    wanted_needs = frozenset([needs] if isinstance(needs, str) else needs)
    if wanted_needs - NEEDS:
        message = f"statistics are {', '.join(sorted(NEEDS))}, not {', '.join(sorted(map(str, wanted_needs - NEEDS)))}"
        raise CheckpointError(message)
    wanted_needs -= {"gap"}
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        message = f"at least one row is sampled, not {rows!r}"
        raise CheckpointError(message)
    found_model = opened(model)
    inputs = calibration if calibration is not None else default_calibration(found_model)
    tell = progress or (lambda _fraction, _label: None)
    base = (model_key(found_model), inputs.content_key) if cache else ("", "")
    stream: BlockStream | None = None

    def walk() -> BlockStream:
        nonlocal stream
        if stream is None:
            stream = BlockStream(found_model, inputs, device=device, folder=folder, memory=memory, progress=tell)
        return stream

    blocks = kept_blocks(key_of(*base, "blocks")) if cache else None
    if blocks is None:
        blocks = [list(place.layers) for place in walk().blocks]
        if cache:
            keep_blocks(key_of(*base, "blocks"), blocks)
    chosen = _chosen(found_model, [name for block in blocks for name in block], layers)
    sample = f"{rows} rows, seed {seed}" if "inputs" in wanted_needs else ""
    keys = {name: key_of(*base, name, ",".join(sorted(wanted_needs)), sample) for name in chosen}
    found: dict[str, LayerStatistics] = {}
    for name in chosen if cache else ():
        kept = kept_statistics(keys[name], name)
        if kept is not None:
            found[name] = kept
    missing = [number for number, block in enumerate(blocks) if any(n in keys and n not in found for n in block)]
    if missing:
        with contextlib.closing(iter(walk())) as steps:
            for number, block in enumerate(steps):
                names = [name for name in block.places if name in keys and name not in found]
                if names:
                    new = block.statistics(needs=wanted_needs, rows=rows, seed=seed, names=names)
                    found |= new
                    for name in new if cache else ():
                        keep_statistics(keys[name], new[name])
                if number == missing[-1]:
                    break
    tell(1.0, "")
    return {name: found[name] for name in chosen if name in found}


def default_calibration(model: Any) -> Calibration:
    """Return what a model is calibrated on where nobody says otherwise: texts, or the training digits of tiny-resnet.

    Raises:
        CheckpointError: nobody knows what it reads (a module that was made in a program).
    """
    found = opened(model)
    if found.config.get("model_type") == "tiny_resnet":
        return Calibration.from_images(found)
    return Calibration.from_texts(found)


def _chosen(model: Model, known: list[str], patterns: str | Iterable[str]) -> list[str]:
    asked = [patterns] if isinstance(patterns, str) else list(patterns)
    chosen: set[str] = set()
    for pattern in asked:
        here = {name for name in known if fnmatch.fnmatchcase(name, pattern)}
        if not here:
            message = f"no layer of {model.name} that these inputs run through is called {pattern!r}" + (
                f" (there are {known[0]}, ..., {known[-1]})" if known else ""
            )
            raise LayerNotFoundError(message)
        chosen |= here
    return [name for name in known if name in chosen]
