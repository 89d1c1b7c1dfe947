"""Start JupyterLab or Voilà on the workbench's notebook, from any folder."""

from __future__ import annotations

import filecmp
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from workbench.errors import WorkbenchError
from workbench.resources import notebooks_path

START = "00_workbench.ipynb"
"""The notebook that opens: the workbench itself."""

_MODULE = {"lab": "jupyterlab", "app": "voila"}


@dataclass(frozen=True)
class NotebookCopies:
    """What ``copy_notebooks`` did."""

    folder: Path
    """Where the notebooks are now."""
    copied: list[str] = field(default_factory=list)
    """File names written."""
    kept: list[str] = field(default_factory=list)
    """File names that were there already and differ from the installed ones: left as they are."""


def copy_notebooks(folder: Path) -> NotebookCopies:
    """Put the workbench's notebooks into ``folder`` where they are missing; what is there already is never overwritten.

    In a checkout of the repository (``folder`` holds the very ``notebooks`` that would be copied) nothing is copied.

    Raises:
        WorkbenchError: the folder cannot be written.
    """
    source = notebooks_path()
    for own in (folder, folder / "notebooks"):
        if own.resolve() == source.resolve():
            return NotebookCopies(own)
    copied, kept = [], []
    for notebook in sorted(source.glob("*.ipynb")):
        target = folder / notebook.name
        if target.exists():
            if not filecmp.cmp(notebook, target, shallow=False):
                kept.append(notebook.name)
            continue
        try:
            shutil.copyfile(notebook, target)
        except OSError as error:
            raise WorkbenchError(
                f"cannot write {target} ({error.strerror or error}): start the workbench in a folder of your own"
            ) from error
        copied.append(notebook.name)
    if not (folder / START).exists():
        raise WorkbenchError(f"this installation has no notebook {START}: reinstall quantization-workbench")
    return NotebookCopies(folder, copied, kept)


def command(kind: Literal["lab", "app"], folder: Path, extra: Sequence[str]) -> list[str]:
    """Return the command line that opens the start notebook of ``folder``; Jupyter itself picks a free port.

    Raises:
        WorkbenchError: JupyterLab or Voilà is not installed.
    """
    module = _MODULE[kind]
    if importlib.util.find_spec(module) is None:
        raise WorkbenchError(f"{module} is not installed: run {Path(sys.executable).name} -m pip install {module}")
    return [sys.executable, "-m", module, str(folder / START), *extra]


def replace_process(arguments: list[str]) -> None:
    """Become the server, so that Ctrl-C and the exit code are its own; does not return."""
    # A kernel of this very environment: another one of the same name might not have the workbench installed.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    if sys.platform == "win32":  # execvp there returns to the shell at once while the server goes on
        sys.exit(subprocess.call(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(arguments[0], arguments)
