"""Two models side by side: transformers' own greedy loop, what is marked, and prompts that cannot be continued."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from workbench import demo_path
from workbench.errors import Cancelled, WorkbenchError
from workbench.evaluation import generate_side_by_side
from workbench.evaluation.generation import _pieces, _side_by_side

PROMPT = "class Stack:\n    def __init__(self):"


@pytest.fixture(scope="module")
def gemma():
    from transformers import AutoTokenizer, Gemma3ForCausalLM

    path = demo_path("tiny-gemma3")
    return Gemma3ForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def rounded(gemma):
    model = copy.deepcopy(gemma[0])
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "layers" in name:
            scale = weight.abs().amax(1, keepdim=True) / 3
            weight.data = (weight / scale).round() * scale
    return model


def test_it_writes_what_transformers_writes(gemma, rounded):
    model, tokenizer = gemma
    (found,) = generate_side_by_side(model, rounded, PROMPT, tokens=12, tokenizer=tokenizer)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    for each, tokens, pieces in (
        (model, found.reference_tokens, found.reference_pieces),
        (rounded, found.tokens, found.pieces),
    ):
        theirs = each.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
        assert list(tokens) == [token for token in theirs if token != tokenizer.eos_token_id]
        assert "".join(pieces) == tokenizer.decode(tokens)
    assert found.first_difference is not None
    first = found.first_difference
    assert found.tokens[:first] == found.reference_tokens[:first]
    assert found.tokens[first] != found.reference_tokens[first]
    assert not any(found.differs[:first])
    assert any(found.differs)
    html = found._repr_html_()
    assert "<mark" in html
    assert "underline" in html
    assert f"token {first + 1}" in html


def test_a_model_writes_what_itself_writes(gemma):
    model, tokenizer = gemma
    told: list[float] = []
    found = generate_side_by_side(model, model, [PROMPT, "import"], tokens=5, tokenizer=tokenizer, progress=told.append)
    assert [each.first_difference for each in found] == [None, None]
    assert not any(flag for each in found for flag in (*each.differs, *each.reference_differs))
    assert found[0].text == found[0].reference_text
    assert "<mark" not in found[0]._repr_html_()
    assert "all the same" in repr(found[0])
    assert told == sorted(told)


class Letters:
    eos_token_id = 0

    def __call__(self, text):
        return {"input_ids": list(text.encode())}

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def follower(step: int):
    """Logits of the letter that many places on; of the token that ends texts after 'e'."""

    def logits(ids):
        found = np.zeros((*ids.shape, 256))
        for place, token in enumerate(ids[0]):
            found[0, place, 0 if token == ord("e") else token + step] = 1.0
        return found

    return logits


def test_functions_write_too_and_texts_end():
    (found,) = generate_side_by_side(follower(1), follower(2), ["a"], tokens=9, tokenizer=Letters())
    assert (found.reference_text, found.text) == ("bcde", "ce")
    assert found.first_difference == 0
    # Aligned: "c" and "e" have partners, "b" and "d" have none.
    assert found.reference_differs == (True, False, True, False)
    assert found.differs == (False, False)


def test_what_differs_is_aligned():
    ids = np.array([65])
    found = _side_by_side("A", ids, [66, 67, 68], [66, 67], Letters())
    assert found.first_difference == 2
    assert found.reference_differs == (False, False, True)
    assert found.differs == (False, False)
    same = _side_by_side("A", ids, [66], [66], Letters())
    assert same.first_difference is None
    empty = _side_by_side("A", ids, [], [66], Letters())
    assert (empty.first_difference, empty.differs) == (0, (True,))
    assert "&lt;" in _side_by_side("<", ids, [ord("<")], [66], Letters())._repr_html_()


def test_a_character_of_several_tokens_belongs_to_the_last():
    tokens = list("aé€".encode())
    assert _pieces([65], tokens, Letters()) == ("a", "", "é", "", "", "€")
    assert "".join(_pieces([65], tokens[:-1], Letters())) == "aé\ufffd"


def test_bad_prompts_and_cancelling(gemma):
    model, tokenizer = gemma
    wrong: list = [([], 4), ([PROMPT], 0), ([3], 4)]
    for prompts, tokens in wrong:
        with pytest.raises(WorkbenchError, match="side by side"):
            generate_side_by_side(model, model, prompts, tokens=tokens, tokenizer=tokenizer)
    with pytest.raises(WorkbenchError, match="leave no room"):
        generate_side_by_side(model, model, "x = 1\n" * 200, tokenizer=tokenizer)
    with pytest.raises(WorkbenchError, match="need a tokenizer"):
        generate_side_by_side(follower(1), follower(1), "a")
    with pytest.raises(WorkbenchError, match="has no tokens"):
        generate_side_by_side(follower(1), follower(1), "", tokenizer=Letters())

    def stop(fraction):
        if fraction > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        generate_side_by_side(model, model, PROMPT, tokens=8, tokenizer=tokenizer, progress=stop)


def test_a_classifier_writes_nothing(gemma):
    with pytest.raises(WorkbenchError, match="of kind classifier and cannot be asked as one of kind causal"):
        generate_side_by_side(gemma[0], "demo:tiny-resnet", "def", tokenizer=gemma[1])
