"""Statistics on disk: one file for each layer, keyed by everything they depend on, written whole or not at all, bounded."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from workbench.calibration.statistics import LayerStatistics
from workbench.checkpoints.tensors import digest
from workbench.quantization.cache import cache_folder, trim

#: Part of every key: raise it when a field changes its meaning or a sum its order.
FORMAT_VERSION = 1
#: The oldest files go when all of them together are larger than this.
MAX_BYTES = 4 << 30
#: A layer that takes more is not kept: a few of them would push everything else out.
MAX_FILE_BYTES = 1 << 30

_ARRAYS = ("second", "mean", "mean_magnitude", "absmax", "gram", "inputs", "float_inputs", "fisher")
_log = logging.getLogger(__name__)


def statistics_folder() -> Path:
    """Return where statistics are kept: beside the sketches, in ``statistics``."""
    return cache_folder().parent / "statistics"


def key_of(*words: str) -> str:
    """Return the file name of a key."""
    return digest(FORMAT_VERSION, *words)


def keep_statistics(key: str, found: LayerStatistics) -> bool:
    """Write a layer's statistics in one step; a folder that cannot be written to costs only the time to make them again.

    Returns:
        Whether they were kept.
    """
    arrays = {name: getattr(found, name) for name in _ARRAYS if getattr(found, name) is not None}
    if sum(array.nbytes for array in arrays.values()) > MAX_FILE_BYTES:
        return False
    return _write(key, {"name": found.name, "count": found.count}, arrays)


def kept_statistics(key: str, name: str) -> LayerStatistics | None:
    """Read a layer's statistics, or return None where there are none that can be trusted."""
    read = _read(key)
    if read is None:
        return None
    plain, arrays = read
    try:
        found = LayerStatistics(name=name, count=int(plain["count"]), **{each: arrays.get(each) for each in _ARRAYS})  # type: ignore[arg-type]
        shape = found.second.shape
        sound = found.count > 0 and len(shape) == 2 and found.mean.shape == found.absmax.shape == shape
        sound = sound and (found.gram is None or found.gram.shape == (*shape, shape[1]))
        return found if sound and all(np.isfinite(array).all() for array in arrays.values()) else None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        _log.debug("kept statistics of %s are made anew: %s", name, error)
        return None


def keep_blocks(key: str, blocks: list[list[str]]) -> bool:
    """Write which layers a model's blocks have."""
    return _write(key, {"blocks": blocks}, {})


def kept_blocks(key: str) -> list[list[str]] | None:
    """Read which layers a model's blocks have; None where nobody wrote it."""
    read = _read(key)
    return None if read is None else read[0].get("blocks")


def _write(key: str, plain: dict[str, Any], arrays: dict[str, np.ndarray]) -> bool:
    path = statistics_folder() / f"{key}.npz"
    header = np.frombuffer(json.dumps({"version": FORMAT_VERSION, **plain}).encode(), dtype=np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, header=header, **arrays)  # type: ignore[arg-type]
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        trim(path.parent, MAX_BYTES)
    except OSError as error:
        _log.debug("statistics were not kept: %s", error)
        return False
    return True


def _read(key: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    path = statistics_folder() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            plain = json.loads(stored["header"].tobytes())
            if plain.pop("version") != FORMAT_VERSION:
                return None
            arrays = {name: stored[name] for name in stored.files if name != "header"}
        os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        _log.debug("the kept statistics %s are made anew: %s", path, error)
        return None
    return plain, arrays
