"""The last word of a passage, foretold from the rest: LAMBADA's task (Paperno et al. 2016, arXiv 1606.06031) on any texts.

    found = last_word("demo:tiny-gemma3")                     # on passages of the shipped held-out text
    found = last_word(model, "lambada_test.jsonl")            # one {"text": ...} a line
    found.accuracy, found.perplexity

A passage is split at its last space, as lm-evaluation-harness' ``lambada_openai`` does: the word with the space before it is
foretold, exactly (every one of its tokens has the largest logit), and its log-probability is the sum over its tokens.
Perplexity is per word, exp of the mean negative log-probability, not per token.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.calibration.docstrings import docstring_sentences
from workbench.errors import WorkbenchError
from workbench.evaluation.log_probabilities import checked_logits, log_probabilities
from workbench.evaluation.perplexity import held_out_documents
from workbench.evaluation.standard_errors import change_of_share, share_error
from workbench.evaluation.subject import Subject, subject
from workbench.evaluation.windows import encode

#: Words of a sentence whose last one is asked for in the shipped passages, at least.
LONG_SENTENCE = 8
#: Characters before that sentence that belong to the passage, at most.
PASSAGE = 1200


@dataclass(frozen=True, repr=False)
class LastWord:
    """How often the last word was foretold.

    Attributes:
        right: passages whose last word was foretold exactly.
        total: passages.
        standard_error: of the accuracy, passages taken as independent.
        perplexity: of the last word as a whole.
        perplexity_error: its standard error, from the spread of the log-probabilities, carried through the exponential.
        hits: whether each passage's was.
        log_probabilities: of each passage's last word, in nats.
        words: the words.
    """

    right: int
    total: int
    standard_error: float
    perplexity: float
    perplexity_error: float
    hits: Bool[np.ndarray, " passages"] = field(compare=False)
    log_probabilities: Float[np.ndarray, " passages"] = field(compare=False)
    words: tuple[str, ...] = field(compare=False)

    @property
    def accuracy(self) -> float:
        """Share of last words that were foretold, 0 to 1."""
        return self.right / self.total

    def change(self, other: LastWord) -> tuple[float, float]:
        """Return this accuracy minus another model's on the same passages, and the standard error of that difference.

        Raises:
            WorkbenchError: the two are of other passages.
        """
        self._same_passages(other)
        return change_of_share(self.hits, other.hits)

    def ratio(self, other: LastWord) -> tuple[float, float]:
        """Return this perplexity over another model's on the same passages, and the standard error of that ratio.

        Raises:
            WorkbenchError: the two are of other passages.
        """
        self._same_passages(other)
        lost = other.log_probabilities - self.log_probabilities
        ratio = math.exp(min(float(lost.mean()), 700.0))
        return ratio, ratio * (float(lost.std(ddof=1)) / math.sqrt(len(lost)) if len(lost) > 1 else math.nan)

    def _same_passages(self, other: LastWord) -> None:
        if self.words != other.words:
            message = "two models' last words can be compared on the same passages only"
            raise WorkbenchError(message)

    def __repr__(self) -> str:
        return (
            f"LastWord({100 * self.accuracy:.1f} % ± {100 * self.standard_error:.1f} %, {self.right} of {self.total}, "
            f"perplexity {self.perplexity:.4g} ± {self.perplexity_error:.3g} a word)"
        )


def last_word(
    model: Any,
    passages: Any = None,
    tokenizer: Any = None,
    *,
    window: int = 512,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> LastWord:
    """Measure how often a causal language model foretells the last word of a passage.

    Args:
        model: all that ``perplexity`` takes.
        passages: a ``.jsonl`` file in LAMBADA's format (one ``{"text": ...}`` a line), or a list of such mappings or of
            texts; by default ``shipped_passages()``, which are not LAMBADA.
        tokenizer: by default the model's own.
        window: most tokens that the model sees at once; of a longer passage the beginning is left out.
        limit: only the first so many passages.
        progress: told the finished fraction; may raise ``Cancelled``.

    Raises:
        WorkbenchError: no passages, one without two words, a file that is not of this format, or no tokenizer.
        CheckpointError: a source that cannot be run.
    """
    texts = read_passages(passages)[:limit]
    if not texts:
        message = "the last word is asked of passages, and there are none"
        raise WorkbenchError(message)
    measured = subject(model, tokenizer=tokenizer, kind="causal")
    if measured.tokenizer is None:
        message = "texts need a tokenizer: give one"
        raise WorkbenchError(message)
    pairs = [split_tokens(text, measured.tokenizer, window) for text in texts]
    order = sorted(range(len(pairs)), key=lambda place: len(pairs[place][0]))
    hits, found = np.zeros(len(pairs), dtype=bool), np.zeros(len(pairs))
    most, done = measured.batch_size(window), 0
    while done < len(order):
        if progress is not None:
            progress(done / len(order))
        length = len(pairs[order[done]][0])
        group = [place for place in order[done : done + most] if len(pairs[place][0]) == length]
        scored = score_ends(measured, [pairs[place] for place in group])
        for place, (value, greedy) in zip(group, scored, strict=True):
            found[place], hits[place] = value, greedy
        done += len(group)
    mean = float(found.mean())
    value = math.exp(min(-mean, 700.0))
    spread = float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    right = int(hits.sum())
    return LastWord(
        right,
        len(texts),
        share_error(right, len(texts)),
        value,
        value * spread,
        hits,
        found,
        tuple(text.rsplit(" ", 1)[1] for text in texts),
    )


def score_ends(model: Subject, pairs: Sequence[tuple[Int[np.ndarray, " tokens"], int]]) -> list[tuple[float, bool]]:
    """Return for each sequence the log-probability of its last tokens, and whether all have the largest logit.

    Args:
        model: a causal language model.
        pairs: (token ids, how many at the end are scored); all of one length.

    Raises:
        WorkbenchError: logits of another shape, or NaN.
    """
    # The last token is foretold, not read.
    ids = np.stack([each[:-1] for each, _ in pairs])
    logits = checked_logits(model.logits(ids), ids, highest=max(int(each.max()) for each, _ in pairs))
    results = []
    for number, (each, count) in enumerate(pairs):
        targets = each[len(each) - count :]
        total, greedy = 0.0, True
        rows = logits[number, len(each) - count - 1 :]
        for start, part in log_probabilities(rows):
            wanted = targets[start : start + len(part)]
            total += float(part[np.arange(len(part)), wanted].sum())
            greedy = greedy and bool((part.argmax(axis=1) == wanted).all())
        results.append((total, greedy))
    return results


def split_tokens(text: str, tokenizer: Any, window: int) -> tuple[Int[np.ndarray, " tokens"], int]:
    """Return the tokens of a passage, as many as the window and one more, and how many make up its last word.

    The passage is tokenized as a whole, and again without its last word; what the whole has more is the last word.

    Raises:
        WorkbenchError: the word has no tokens of its own, or more than the window.
    """
    rest, word = text.rsplit(" ", 1)
    whole, before = (_without_end(encode(tokenizer, each), tokenizer) for each in (text, rest))
    count = len(whole) - len(before)
    if count < 1 or not before or count > window:
        message = (
            f"the last word {word[:40]!r} has no tokens of its own with this tokenizer, or nothing stands before it"
        )
        raise WorkbenchError(message)
    return np.asarray(whole[-(window + 1) :], dtype=np.int64), count


def read_passages(passages: Any) -> list[str]:
    """Return passages as texts, without white space around them.

    Args:
        passages: see ``last_word``.

    Raises:
        WorkbenchError: a file that cannot be read or is not of this format, or a passage of one word.
    """
    if passages is None:
        return shipped_passages()
    if isinstance(passages, str | os.PathLike):
        items = _read_lines(Path(passages))
    else:
        items = [(f"passage {number}", each) for number, each in enumerate(passages, 1)]
    found = []
    for where, item in items:
        text = item.get("text") if isinstance(item, Mapping) else item
        if not isinstance(text, str):
            message = f'{where} is no passage: LAMBADA\'s format has one {{"text": "..."}} a line'
            raise WorkbenchError(message)
        if " " not in text.strip():
            message = f"{where} has one word only: the last word is foretold from those before it"
            raise WorkbenchError(message)
        found.append(text.strip())
    return found


def shipped_passages() -> list[str]:
    """Return passages of the shipped held-out text that end in the last word of a long sentence. This is not LAMBADA.

    The rule: every English sentence of eight words or more in a docstring whose last word has three letters or more and no
    others signs, and stands on the line of the word before it; the passage is the module's source text from up to 1200
    characters before the sentence (from the beginning of a line; at least 600 must be there) to that word, without the full
    stop. Nobody checked that people can foretell these words, which is what LAMBADA's authors did.
    """
    found: dict[str, None] = {}
    for module in held_out_documents():
        for sentence in (each for part in docstring_sentences(module) for each in part):
            words = sentence[:-1].split()
            if len(words) < LONG_SENTENCE or not re.fullmatch("[A-Za-z]{3,}", words[-1]):
                continue
            pattern = r"\s+".join(map(re.escape, words[:-1])) + " " + words[-1]
            place = re.search(pattern, module)
            if place is None or place.start() < PASSAGE // 2:
                continue
            begin = max(0, place.start() - PASSAGE)
            if begin:
                begin = module.find("\n", begin) + 1
            found.setdefault(module[begin : place.end()].strip())
    return list(found)


def _read_lines(path: Path) -> list[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read as passages: {error}"
        raise WorkbenchError(message) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append((f"line {number} of {path.name}", json.loads(line)))
        except ValueError:
            message = f'line {number} of {path.name} is no JSON: LAMBADA\'s format has one {{"text": "..."}} a line'
            raise WorkbenchError(message) from None
    return found


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """Leave out the token that some tokenizers put behind every text."""
    end = getattr(tokenizer, "eos_token_id", None)
    return ids[:-1] if ids and end is not None and ids[-1] == end else ids
