"""English that ships with Python: the sentences of docstrings, for models that read prose."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence

#: What stands between two modules in the held-out text.
_SEPARATOR = "\f\n"


def docstring_sentences(source: str) -> list[list[str]]:
    """Return the English sentences of every docstring of Python modules, in order; empty docstrings are left out.

    Args:
        source: modules, one after another with a form feed on a line of its own between them, as the held-out text has.
    """
    found = []
    for module in source.split(_SEPARATOR):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old modules hold escapes that today's compiler warns of
                tree = ast.parse(module)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                sentences = _sentences(ast.get_docstring(node) or "")
                if sentences:
                    found.append(sentences)
    return found


def _sentences(text: str) -> list[str]:
    """Return what reads like an English sentence: 5 to 40 words, nearly all of letters, ended by a full stop."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph:
            continue
        for piece in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            words = piece.split()
            plain = sum(word.strip("'\"(),.;:!?-").isalpha() for word in words)
            if 5 <= len(words) <= 40 and piece[0].isupper() and piece.endswith(".") and plain >= 0.85 * len(words):
                found.append(piece)
    return found


def english(modules: Sequence[str]) -> list[str]:
    """Return the sentences of each Python module's docstrings, one to a line; modules without any are left out."""
    found = ("\n".join(sentence for part in docstring_sentences(module) for sentence in part) for module in modules)
    return [text for text in found if text]
