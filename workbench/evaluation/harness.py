"""lm-evaluation-harness on the workbench's models: quantized, integer or plain, all tasks of the harness.

    import lm_eval
    lm_eval.simple_evaluate(lm_eval_model(quantized), tasks=["lambada_openai"])

Needs the ``lm-eval`` extra. The harness downloads a task's data by itself; the model it is given runs here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from workbench.calibration.decoding import most_positions
from workbench.errors import WorkbenchError
from workbench.evaluation.generation import write_greedily
from workbench.evaluation.last_word import score_ends
from workbench.evaluation.subject import subject
from workbench.evaluation.windows import encode

#: New tokens of a generation where the task names no number (the harness' own default).
MOST_NEW_TOKENS = 256


def lm_eval_model(
    model: Any, tokenizer: Any = None, *, window: int | None = None, progress: Callable[[float], None] | None = None
) -> Any:
    """Return a model as lm-evaluation-harness takes it (an ``lm_eval.api.model.LM``).

    Texts are tokenized as the model's tokenizer does, with the token that begins texts where it adds one. Generation is greedy.
    A whole text (``loglikelihood_rolling``) is scored behind that token, once: the harness' own Hugging Face adapter with
    ``add_bos_token=True`` puts it there twice and scores the second one too, so its figure is a little worse.

    Args:
        model: all that ``perplexity`` takes.
        tokenizer: by default the model's own.
        window: most tokens that the model sees at once; by default what its config says, else 2048.
        progress: told the finished fraction of each group of requests; may raise ``Cancelled``.

    Raises:
        WorkbenchError: lm-eval is not installed, or there is no tokenizer.
        CheckpointError: a source that cannot be run.
    """
    kind = _adapter()
    measured = subject(model, tokenizer=tokenizer, kind="causal")
    if measured.tokenizer is None:
        message = "the harness gives texts, which need a tokenizer: give one"
        raise WorkbenchError(message)
    most = most_positions(measured.module) if measured.module is not None else None
    return kind(measured, window or most or 2048, progress or (lambda fraction: None))


@cache
def _adapter() -> Any:
    """Return the class; it is made here because its base comes with the extra."""
    try:
        from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
        from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
            get_rolling_token_windows,
            make_disjoint_window,
        )
    except ImportError:
        message = 'lm-evaluation-harness is not installed: pip install "quantization-workbench[lm-eval]"'
        raise WorkbenchError(message) from None

    class WorkbenchLM(TemplateLM):
        """A causal language model of the workbench."""

        def __init__(self, measured: Any, window: int, progress: Callable[[float], None]) -> None:
            super().__init__()
            self.subject = measured
            self.tokenizer = measured.tokenizer
            self.window = window
            self.progress = progress

        @property
        def eot_token_id(self) -> int:
            return int(self.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            begin = getattr(self.tokenizer, "bos_token_id", None)
            return self.eot_token_id if begin is None else int(begin)

        @property
        def tokenizer_name(self) -> str:
            return str(getattr(self.tokenizer, "name_or_path", "")).replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            if add_special_tokens is False:
                return list(self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"])
            return list(encode(self.tokenizer, string))

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            rows = []
            for _pair, context, continuation in requests:
                # The harness' own rule: the last tokens that fit; the very last is foretold and need not fit.
                ids = [*context, *continuation][-(self.window + 1) :]
                rows.append((np.asarray(ids, dtype=np.int64), min(len(continuation), len(ids) - 1)))
            order = sorted(range(len(rows)), key=lambda place: -len(rows[place][0]))
            found: list[Any] = [None] * len(rows)
            most, done = self.subject.batch_size(self.window), 0
            while done < len(order):
                self.progress(done / len(order))
                length = len(rows[order[done]][0])
                group = [place for place in order[done : done + most] if len(rows[place][0]) == length]
                for place, result in zip(group, score_ends(self.subject, [rows[each] for each in group]), strict=True):
                    found[place] = result
                    # Requests that the harness keeps between runs; rolling windows have no text of their own.
                    if requests[place][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[place][0], result)
                done += len(group)
            return found

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            totals = []
            for request in requests:
                (text,) = request.args
                windows = map(
                    make_disjoint_window,
                    get_rolling_token_windows(
                        token_list=self.tok_encode(text, add_special_tokens=False),
                        prefix_token=self.prefix_token_id,
                        max_seq_len=self.window,
                        context_len=1,
                    ),
                )
                parts = self._loglikelihood_tokens([(None, context, rest) for context, rest in windows])
                totals.append(float(sum(value for value, _ in parts)))
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
            return totals

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            found = []
            for number, request in enumerate(requests):
                self.progress(number / len(requests))
                context, settings = request.args
                if settings.get("do_sample") and settings.get("temperature", 1.0) != 0.0:
                    message = "the workbench's models write greedily: this task wants samples (do_sample)"
                    raise WorkbenchError(message)
                until = settings.get("until") or []
                stops = [each for each in ([until] if isinstance(until, str) else until) if each]
                new = int(settings.get("max_gen_toks", MOST_NEW_TOKENS))
                new = max(1, min(new, self.window - 1))
                # The newest part of the prompt that leaves room for the answer.
                ids = np.asarray(self.tok_encode(context)[-(self.window - new) :], dtype=np.int64)

                def ended(tokens: list[int], stops: list[str] = stops) -> bool:
                    text = self.tokenizer.decode(tokens)
                    return any(stop in text for stop in stops)

                written = write_greedily(self.subject, ids, new, self.tokenizer, finished=ended)
                text = self.tokenizer.decode(written, skip_special_tokens=True)
                for stop in stops:
                    text = text.split(stop)[0]
                found.append(text)
                self.cache_hook.add_partial("generate_until", request.args, text)
            return found

    return WorkbenchLM
