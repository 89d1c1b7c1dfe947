"""The adapter for lm-evaluation-harness: its own Hugging Face adapter is the judge, on a task that lies beside the test."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest

from workbench import demo_path
from workbench.errors import Cancelled, WorkbenchError
from workbench.evaluation import lm_eval_model

missing = importlib.util.find_spec("lm_eval") is None

ROWS = [
    {"question": "import", "choices": [" os\n", " zebra of\n"], "answer": 0},
    {"question": "def __init__(", "choices": ["banana, 7", "self, name"], "answer": 1},
    {"question": "if __name__ ==", "choices": [" cucumber", " '__main__':"], "answer": 1},
]
TASK = """
task: words_of_python
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def test_without_the_harness_one_sentence_says_what_to_install(monkeypatch):
    from workbench.evaluation import harness

    harness._adapter.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(WorkbenchError, match=r"pip install .quantization-workbench\[lm-eval\]"):
        lm_eval_model("demo:tiny-gemma3")
    monkeypatch.undo()
    harness._adapter.cache_clear()


@pytest.fixture(scope="module")
def adapter():
    if missing:
        pytest.skip("lm-eval is not installed")
    return lm_eval_model("demo:tiny-gemma3")


def requests(kind: str, arguments: list[tuple]) -> list:
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]  # pyright: ignore[reportCallIssue]


def test_a_task_runs(adapter, tmp_path):
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "task.yaml").write_text(TASK.format(data=data))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(adapter, tasks=["words_of_python"], task_manager=manager, log_samples=False)
    assert found["results"]["words_of_python"]["acc,none"] == 1.0


def test_it_says_what_the_harness_own_adapter_says(adapter):
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("the harness' own adapter needs accelerate")
    import torch
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer, Gemma3ForCausalLM

    path = demo_path("tiny-gemma3")
    module = Gemma3ForCausalLM.from_pretrained(path, dtype=torch.float32)
    settings = {"tokenizer": AutoTokenizer.from_pretrained(path), "batch_size": 1, "device": "cpu"}
    judge = HFLM(pretrained=module, add_bos_token=True, **settings)
    long = "value = 1\n" * 300
    pairs = requests(
        "loglikelihood", [("import", " os"), ("a ", "b c"), ("", "import os"), (long, "value"), ("x", " y z")]
    )
    # One request at a time: two that read the same tokens, ("import", " os") and ("", "import os"), share one pass in the
    # judge, and it then looks up the first one's token in the wrong row.
    for pair, (ours, ours_greedy) in zip(pairs, adapter.loglikelihood(pairs), strict=True):
        ((theirs, theirs_greedy),) = judge.loglikelihood([pair])
        assert ours == pytest.approx(theirs, abs=2e-3)
        assert ours_greedy == theirs_greedy
    texts = requests("generate_until", [("def f(", {"until": ["\n"], "max_gen_toks": 9, "do_sample": False})])
    assert adapter.generate_until(texts) == judge.generate_until(texts)
    plain = HFLM(pretrained=module, add_bos_token=False, **settings)
    whole = requests("loglikelihood_rolling", [("import os\nimport sys\n",), (long,)])
    assert adapter.loglikelihood_rolling(whole) == pytest.approx(plain.loglikelihood_rolling(whole), rel=1e-4)


def test_samples_and_cancelling(adapter):
    asked = requests("generate_until", [("def f(", {"do_sample": True, "temperature": 0.7})])
    with pytest.raises(WorkbenchError, match="write greedily"):
        adapter.generate_until(asked)

    def stop(fraction):
        raise Cancelled

    with pytest.raises(Cancelled):
        lm_eval_model("demo:tiny-gemma3", progress=stop).loglikelihood(requests("loglikelihood", [("a", " b")]))


def test_functions_are_adapted_too():
    if missing:
        pytest.skip("lm-eval is not installed")

    class Letters:
        eos_token_id = 0
        bos_token_id = None

        def __call__(self, text, add_special_tokens=True, verbose=True):
            return {"input_ids": list(text.encode())}

        def decode(self, ids, skip_special_tokens=False):
            return bytes(ids).decode()

    def next_letter(ids):
        found = np.full((*ids.shape, 128), -20.0)
        for row, tokens in zip(found, ids, strict=True):
            row[np.arange(len(tokens)), tokens + 1] = 0.0
        return found

    model = lm_eval_model(next_letter, Letters(), window=16)
    ((sure, greedy), (unsure, other)) = model.loglikelihood(requests("loglikelihood", [("a", "bcd"), ("a", "bb")]))
    assert (round(sure, 3), greedy, other) == (0.0, True, False)
    assert unsure == pytest.approx(-20.0, abs=1e-3)
    assert model.generate_until(requests("generate_until", [("a", {"until": "e", "max_gen_toks": 9})])) == ["bcd"]
