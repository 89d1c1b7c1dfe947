"""Sketches on disk: small files keyed by what the weights are, written whole or not at all, bounded in size."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from workbench.quantization.sketch import Sketch

#: Part of every key: raise it when bins, moments or fields change their meaning.
FORMAT_VERSION = 2

#: The oldest files go when all of them together are larger than this.
MAX_BYTES = 2 << 30

_ARRAYS = ("value_min", "value_max", "n", "m0", "m1", "m2", "weights", "offset_moment")
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return where sketches are kept: ``$WORKBENCH_CACHE`` or the user's cache directory, then ``sketches``."""
    chosen = os.environ.get("WORKBENCH_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "sketches"
    import platformdirs

    return Path(platformdirs.user_cache_dir("quantization-workbench")) / "sketches"


def cached_sketch(words: tuple[str, ...], name: str, make: Callable[[], Sketch]) -> Sketch:
    """Return the sketch kept under a key, or make it and keep it.

    A file that cannot be read (damaged, or of another version) is made anew; a folder that cannot be written to costs
    only the time to make the sketch again.

    Args:
        words: what the sketch depends on: content key, granularity, normalization.
        name: the layer's name now (the same weights may bear another name in another model).
        make: makes the sketch.
    """
    path = cache_folder() / f"{key_of(words)}.npz"
    found = read_sketch(path)
    if found is not None:
        return replace(found, name=name)
    made = make()
    try:
        write_sketch(path, made)
        trim(path.parent, MAX_BYTES)
    except OSError as error:
        _log.debug("a sketch was not kept: %s", error)
    return made


def key_of(words: tuple[str, ...]) -> str:
    """Return the file name of a key."""
    return hashlib.sha256("\n".join((str(FORMAT_VERSION), *words)).encode()).hexdigest()[:40]


def write_sketch(path: Path, sketch: Sketch) -> None:
    """Write a sketch in one step: a reader sees the whole file or none.

    Raises:
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: getattr(sketch, name) for name in _ARRAYS if getattr(sketch, name) is not None}
    if sketch.exact:
        del arrays["value_max"]  # the same as value_min
    plain = {item.name: getattr(sketch, item.name) for item in fields(Sketch) if item.name not in _ARRAYS}
    header = np.frombuffer(json.dumps({"version": FORMAT_VERSION, **plain}).encode(), dtype=np.uint8)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, header=header, **arrays)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_sketch(path: Path) -> Sketch | None:
    """Read a sketch, or return None where there is none that can be trusted; reading marks the file as used."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            plain = json.loads(stored["header"].tobytes())
            if plain.pop("version") != FORMAT_VERSION:
                return None
            arrays = {name: stored.get(name) for name in _ARRAYS}
        if plain["exact"]:
            arrays["value_max"] = arrays["value_min"]
        found = Sketch(**plain, **arrays)
        _check(found)
        os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        _log.debug("the kept sketch %s is made anew: %s", path, error)
        return None
    return found


def _check(sketch: Sketch) -> None:
    """Raise ValueError where a sketch contradicts itself (a damaged file that still parses)."""
    required = [getattr(sketch, name) for name in _ARRAYS[:6]]
    optional = [part for part in (sketch.weights, sketch.offset_moment) if part is not None]
    if any(part.shape != sketch.n.shape or part.dtype != np.float64 for part in (*required, *optional)):
        message = "arrays of different lengths or types"
        raise ValueError(message)
    if sketch.exact and sketch.weights is None:
        message = "an exact sketch without its weights"
        raise ValueError(message)
    if sketch.n.sum() != sketch.count or sketch.count != sketch.rows * sketch.columns:
        message = "the bins do not hold as many weights as the layer"
        raise ValueError(message)


def trim(folder: Path, max_bytes: int) -> None:
    """Delete the sketches used longest ago until the rest fits into ``max_bytes``.

    Raises:
        OSError: the folder cannot be listed.
    """
    known = []
    for path in folder.glob("*.npz"):
        try:
            status = path.stat()
        except FileNotFoundError:  # another process was faster
            continue
        known.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in known)
    for _, size, path in sorted(known):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def clear_cache() -> int:
    """Delete every kept sketch; return how many there were."""
    count = 0
    for path in cache_folder().glob("*.npz"):
        path.unlink(missing_ok=True)
        count += 1
    return count
