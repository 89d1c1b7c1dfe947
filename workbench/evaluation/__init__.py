"""What a quantized model is worth: perplexity, divergence, accuracy, similarity, texts side by side, and what each operator costs."""

from workbench.evaluation.accuracy import Accuracy, accuracy, compare_accuracy, held_out_digits
from workbench.evaluation.budget import ErrorBudget, OperatorError, error_budget
from workbench.evaluation.divergence import Divergence, divergence
from workbench.evaluation.evaluate import Evaluation, compare, evaluate
from workbench.evaluation.generation import Generated, generate_side_by_side
from workbench.evaluation.harness import lm_eval_model
from workbench.evaluation.last_word import LastWord, last_word, shipped_passages
from workbench.evaluation.metrics import METRICS, EvaluationRow, Metric
from workbench.evaluation.perplexity import Perplexity, held_out_documents, perplexity
from workbench.evaluation.similarity import Similarity, sentence_pairs, similarity, spearman

__all__ = [
    "METRICS",
    "Accuracy",
    "Divergence",
    "ErrorBudget",
    "Evaluation",
    "EvaluationRow",
    "Generated",
    "LastWord",
    "Metric",
    "OperatorError",
    "Perplexity",
    "Similarity",
    "accuracy",
    "compare",
    "compare_accuracy",
    "divergence",
    "error_budget",
    "evaluate",
    "generate_side_by_side",
    "held_out_digits",
    "held_out_documents",
    "last_word",
    "lm_eval_model",
    "perplexity",
    "sentence_pairs",
    "shipped_passages",
    "similarity",
    "spearman",
]
