"""Perplexity against its definition, window by window; the shipped model's figure comes out again."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench import demo_path
from workbench.errors import Cancelled, WorkbenchError
from workbench.evaluation import perplexity
from workbench.resources import held_out_text_path

WORDS = 7


def bigram(ids: np.ndarray) -> np.ndarray:
    """Logits that depend on the token before alone, so windows do not matter."""
    table = np.random.default_rng(3).normal(0, 2, (WORDS, WORDS))
    return table[ids]


def definition(sequences: list[np.ndarray]) -> tuple[float, int]:
    """Return nats and tokens, one token after another in Python floats."""
    total, count = 0.0, 0
    for ids in sequences:
        for before, token in pairwise(ids):
            row = [float(each) for each in bigram(np.array([before]))[0]]
            total += math.log(sum(math.exp(each) for each in row)) - row[token]
            count += 1
    return total, count


@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    window=st.integers(2, 25),
    part=st.floats(0.01, 0.99),
)
def test_every_token_but_the_first_is_scored_once(seed, lengths, window, part):
    draw = np.random.default_rng(seed)
    sequences = [draw.integers(0, WORDS, length) for length in lengths]
    stride = max(1, min(window - 1, int(part * window)))
    total, count = definition(sequences)
    if count == 0:
        with pytest.raises(WorkbenchError, match="two tokens or more"):
            perplexity(bigram, sequences, window=window, stride=stride)
        return
    found = perplexity(bigram, sequences, window=window, stride=stride)
    assert found.tokens == count == found.counts.sum()
    assert found.value == pytest.approx(math.exp(total / count), rel=1e-9)


def test_windows_see_what_stands_before_them():
    seen = []

    def logits(ids):
        seen.append(ids[0].tolist())
        return np.zeros((*ids.shape, 50))

    found = perplexity(logits, [np.arange(11)], window=4, stride=2)
    assert seen == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9], [8, 9, 10]]
    np.testing.assert_array_equal(found.counts, [3, 2, 2, 2, 1])
    assert found.value == pytest.approx(50.0)


def test_a_logit_far_out_does_not_overflow():
    assert perplexity(lambda ids: np.full((*ids.shape, 3), 1e6), [[0, 1, 2]]).value == pytest.approx(3.0)
    sure = np.array([[[-1e4, 1e4, 0.0]]])
    assert perplexity(lambda ids: np.repeat(sure, ids.shape[1], axis=1), [[0, 0]]).value > 1e200


def test_bits_per_byte_count_the_bytes_of_the_texts():
    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [0, *text.encode()]}

    found = perplexity(lambda ids: torch.zeros((*ids.shape, 256)), ["abc", "é"], tokenizer)
    assert found.tokens == 5
    assert found.bits_per_byte == pytest.approx(8.0)
    assert math.isnan(perplexity(bigram, [[1, 2, 3]]).bits_per_byte)


def test_limit_stops_after_whole_windows():
    found = perplexity(bigram, [np.arange(60) % WORDS], window=10, stride=5, limit=11)
    assert found.tokens == 14
    assert math.isnan(found.bits_per_byte)


def test_standard_error_shrinks_as_windows_grow_in_number():
    draw = np.random.default_rng(1)
    some, many = (perplexity(bigram, [draw.integers(0, WORDS, n)], window=10, stride=5) for n in (500, 8000))
    assert 2.5 < some.standard_error / many.standard_error < 7.0  # a factor of 16 in tokens: 4 expected
    # What the estimator says is what repeated measurements show.
    values = [perplexity(bigram, [draw.integers(0, WORDS, 500)], window=10, stride=5).value for _ in range(60)]
    assert 0.6 < np.std(values) / some.standard_error < 1.6


def test_ratio_of_two_models_on_the_same_tokens():
    ids = [np.random.default_rng(2).integers(0, WORDS, 300)]
    first = perplexity(bigram, ids, window=16)
    second = perplexity(lambda tokens: bigram(tokens) * 0.9, ids, window=16)
    ratio, spread = second.ratio(first)
    assert ratio == pytest.approx(second.value / first.value)
    assert spread < second.standard_error / second.value
    assert first.ratio(first) == (1.0, 0.0)
    with pytest.raises(WorkbenchError, match="same windows"):
        first.ratio(perplexity(bigram, ids, window=8))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"texts": ["a text"]}, "tokenizer"),
        ({"texts": "a text"}, "tokenizer"),
        ({"texts": [[1, 2], "a"], "tokenizer": dict}, "not both"),
        ({"texts": [[1, 2]], "window": 1}, "windows of 1"),
        ({"texts": [[1, 2]], "window": 8, "stride": 8}, "not 8"),
        ({"texts": []}, "two tokens"),
        ({"texts": None}, "tokenizer"),
        ({"texts": 3}, "not int"),
        ({"texts": [[1.5, 2.0]]}, "integers"),
        ({"texts": [np.zeros((2, 4), int)]}, r"not int64 \(2, 4\)"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, said):
    with pytest.raises(WorkbenchError, match=said):
        perplexity(bigram, **arguments)


@pytest.mark.parametrize("shape", [(3, 9), (1, 1, 9), (2, 3, 9)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(WorkbenchError, match=r"logits of 3 tokens are \(1, 3, vocabulary\)"):
        perplexity(lambda ids: np.zeros(shape), [[1, 2, 3]])


def test_tokens_that_the_model_does_not_know_are_refused():
    with pytest.raises(WorkbenchError, match="knows tokens 0 to 6; the text holds 1 to 7"):
        perplexity(lambda ids: np.zeros((*ids.shape, 7)), [[1, 7, 2]])


def test_it_can_be_cancelled():
    def stop(fraction: float) -> None:
        if fraction > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        perplexity(bigram, [np.zeros(99, int)], window=10, progress=stop)


class TinyModel(torch.nn.Module):
    """A causal model in float64 whose prediction depends on everything before: a decayed sum of embeddings."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Parameter(torch.randn(WORDS, 5, generator=generator, dtype=torch.float64))
        self.head = torch.nn.Parameter(2 * torch.randn(5, WORDS, generator=generator, dtype=torch.float64))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, ids):
        state, rows = torch.zeros(len(ids), 5, dtype=torch.float64), []
        for place in range(ids.shape[1]):
            state = 0.8 * state + self.embedding[ids[:, place]]
            rows.append(self.dropout(torch.tanh(state)) @ self.head)
        return torch.stack(rows, dim=1)


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 1), (5, 3), (50, None)])
def test_a_module_is_scored_as_a_slow_loop_scores_it(window, stride):
    """Token by token in Python floats: each in the first window that holds it, from all that the window has before it."""
    model, draw = TinyModel(), np.random.default_rng(0)
    texts = [draw.integers(0, WORDS, length) for length in (23, 8, 1, 2)]
    table, head = (each.detach().numpy() for each in (model.embedding, model.head))
    total, count, step = 0.0, 0, stride or window // 2
    for ids in texts:
        for place in range(1, len(ids)):
            begin = next(start for start in range(0, len(ids), step) if start + window > place)
            state = np.zeros(5)
            for token in ids[begin:place]:
                state = 0.8 * state + table[token]
            row = [float(each) for each in np.tanh(state) @ head]
            total += math.log(sum(math.exp(each) for each in row)) - row[ids[place]]
            count += 1
    model.train()  # it is measured in evaluation mode all the same, and left as it was
    found = perplexity(model, texts, window=window, stride=stride)
    assert model.training
    assert found.tokens == count
    assert found.value == pytest.approx(math.exp(total / count), rel=1e-12)
    assert perplexity(model, texts, window=window, stride=stride, batch=1).value == pytest.approx(
        found.value, rel=1e-12
    )


def test_errors_by_documents_and_by_windows():
    draw = np.random.default_rng(6)
    ids = [draw.integers(0, WORDS, 60) for _ in range(12)]
    found = perplexity(bigram, ids, window=10, stride=5)
    assert found.error_by("windows") == (found.standard_error, f"{len(found.losses)} windows")
    assert found.error_by() == (found.document_error, "12 documents")
    # By hand: documents are the clusters of a ratio estimator.
    losses, counts = np.bincount(found.documents, found.losses), np.bincount(found.documents, found.counts)
    residual = losses - losses.sum() / counts.sum() * counts
    assert found.document_error == pytest.approx(found.value * math.sqrt(12 / 11 * (residual**2).sum()) / counts.sum())
    other = perplexity(lambda tokens: bigram(tokens) * 0.9, ids, window=10, stride=5)
    assert other.ratio(found)[0] == other.ratio(found, "documents")[0]
    assert other.ratio(found, "documents") == other.ratio(found, "auto")
    assert math.isnan(perplexity(bigram, ids[0], window=10).document_error)
    with pytest.raises(WorkbenchError, match="not 'words'"):
        found.error_by("words")  # pyright: ignore[reportArgumentType]
    with pytest.raises(WorkbenchError, match="same windows"):
        found.ratio(perplexity(bigram, [np.concatenate(ids[:2]), *ids[2:]], window=10, stride=5))


def test_sources_opened_and_quantized_models_are_taken():
    from workbench import open_model

    class Quantized:
        def __init__(self, module):
            self.module = lambda: module

    opened = open_model(demo_path("tiny-gemma3"))
    text = "import os\nimport sys\n\n\ndef main(argv=None):\n    return 0\n"
    first = perplexity("demo:tiny-gemma3", [text]).value
    assert perplexity(opened, [text]).value == first
    assert perplexity(demo_path("tiny-gemma3"), [text]).value == first
    from workbench.calibration.runnable import load

    module, tokenizer = load(opened)
    assert perplexity(module, [text]).value == first  # its tokenizer is found in the folder it was loaded from
    assert perplexity(Quantized(module), [text], tokenizer).value == first
    shipped = perplexity(module, limit=300)
    assert shipped.tokens >= 300
    assert math.isnan(shipped.bits_per_byte)
    with pytest.raises(WorkbenchError, match="not int"):
        perplexity(3, [text])


def test_shipped_model_scores_what_its_card_says_on_the_first_modules():
    """The card's figure is over all modules; the convention is the same, and its own function is run beside ours."""
    from transformers import AutoTokenizer, Gemma3ForCausalLM

    path = demo_path("tiny-gemma3")
    model = Gemma3ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = held_out_text_path().read_text(encoding="utf-8").split("\f\n")[0][:5000]

    def logits(ids: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=torch.from_numpy(ids)).logits

    found = perplexity(logits, [text], tokenizer)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    total, scored = 0.0, 1
    for begin in range(0, len(ids), 256):
        window = ids[begin : begin + 512]
        if begin + len(window) <= scored:
            break
        rows = logits(window[None].numpy())[0]
        first = scored - begin
        total += float(torch.nn.functional.cross_entropy(rows[first - 1 : -1], window[first:], reduction="sum"))
        scored = begin + len(window)
    assert found.tokens == scored - 1
    assert found.value == pytest.approx(math.exp(total / (scored - 1)), rel=1e-5)
    card = json.loads((path / "training.json").read_text(encoding="utf-8"))["figures"]["perplexity"]
    assert 0.3 * card < found.value < 3 * card


@pytest.mark.parametrize("token", [-1, 10**6])
def test_tokens_that_a_module_does_not_know_are_refused_before_it_runs(token):
    with pytest.raises(WorkbenchError, match="the model knows tokens 0 to"):
        perplexity("demo:tiny-gemma3", [[2, token, 3]])
