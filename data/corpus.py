"""The training and held-out text of the demo language model: Python's own standard library.

The standard library is under the PSF licence (https://docs.python.org/3/license.html), which allows redistribution with
its notice; the held-out modules are frozen in ``data/text/`` so that a perplexity measured today can be measured again
with another Python.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
HELD_OUT_TEXT = HERE / "text" / "stdlib_held_out.txt"
HELD_OUT_LIST = HERE / "text" / "stdlib_held_out.json"

# Not modules that a person wrote by hand and means to be read: test suites, vendored wheels, generated tables.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "ensurepip", "pydoc_data", "encodings"}
HELD_OUT_ONE_IN = 24
MODULE_SEPARATOR = "\f\n"


def standard_library() -> dict[str, str]:
    """Return every chosen module of this Python's standard library, path relative to ``Lib`` -> source text."""
    root = Path(sysconfig.get_path("stdlib"))
    modules = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS & set(relative.parts) or relative.name.startswith("_sysconfigdata"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a module in another declared encoding: five of them, left out
            continue
        if len(text) > 400:  # package markers teach nothing
            modules[relative.as_posix()] = text
    return modules


def is_held_out(relative: str, text: str) -> bool:
    """Choose the held-out modules by a hash of their path; no module may dominate the figure by its length alone."""
    if len(text) > 60_000:
        return False
    return int.from_bytes(hashlib.sha256(relative.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def freeze_held_out(modules: dict[str, str]) -> None:
    """Write the held-out modules and the list of their names under ``data/text/`` (once; they never change after)."""
    names = [name for name, text in modules.items() if is_held_out(name, text)]
    HELD_OUT_TEXT.parent.mkdir(parents=True, exist_ok=True)
    HELD_OUT_TEXT.write_text(MODULE_SEPARATOR.join(modules[name] for name in names), encoding="utf-8")
    HELD_OUT_LIST.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")


def held_out_texts() -> list[str]:
    """Return the frozen held-out modules, one string a module."""
    names = json.loads(HELD_OUT_LIST.read_text(encoding="utf-8"))
    texts = HELD_OUT_TEXT.read_text(encoding="utf-8").split(MODULE_SEPARATOR)
    if len(texts) != len(names):
        raise ValueError(f"{HELD_OUT_TEXT} holds {len(texts)} modules, its list names {len(names)}")
    return texts


def training_texts() -> list[str]:
    """Return the modules to train on: all but those that the frozen list holds out."""
    modules = standard_library()
    if not HELD_OUT_LIST.exists():
        freeze_held_out(modules)
    held_out = set(json.loads(HELD_OUT_LIST.read_text(encoding="utf-8")))
    return [text for name, text in modules.items() if name not in held_out]
