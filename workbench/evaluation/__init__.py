"""What a quantized model is worth: accuracy, perplexity, similarity of sentences, and which operator costs how much."""

from workbench.evaluation.accuracy import Accuracy, accuracy, compare_accuracy
from workbench.evaluation.budget import ErrorBudget, OperatorError, error_budget
from workbench.evaluation.perplexity import Perplexity, perplexity
from workbench.evaluation.similarity import Similarity, sentence_pairs, similarity, spearman

__all__ = [
    "Accuracy",
    "ErrorBudget",
    "OperatorError",
    "Perplexity",
    "Similarity",
    "accuracy",
    "compare_accuracy",
    "error_budget",
    "perplexity",
    "sentence_pairs",
    "similarity",
    "spearman",
]
