"""The words of other tools that people write into a sweep file, each with the way to say it here.

Most are the words of W&B sweeps, others those of Optuna and Ray Tune.
"""

from __future__ import annotations

from typing import NamedTuple

from qdtune.messages import KeyPath, format_value


class ForeignWord(NamedTuple):
    """A key or value of another tool.

    Attributes:
        home: where it stands: the top-level group of a key, "" for a top-level key, or the key of a value.
        word: the key or value.
        hint: how it is said here.
    """

    home: str
    word: str
    hint: str


FOREIGN_WORDS = (
    ForeignWord("", "metric", "it is called data.metric here, and knows its direction"),
    ForeignWord("", "mode", "leave it out: it follows from data.metric"),
    ForeignWord("", "direction", "leave it out: it follows from data.metric"),
    ForeignWord("", "program", "leave it out: name code of your own as model.factory or data.factory"),
    ForeignWord("", "command", "leave it out: run `qdtune launch` on this file"),
    ForeignWord("", "project", "leave it out: W&B is told by run.loggers and WANDB_PROJECT"),
    ForeignWord("", "entity", "leave it out: W&B is told by run.loggers and WANDB_ENTITY"),
    ForeignWord("", "num_samples", "it is called run_cap here"),
    ForeignWord("", "n_trials", "it is called run_cap here"),
    ForeignWord("", "sampler", "it is called method here"),
    ForeignWord("", "search_alg", "it is called method here"),
    ForeignWord("", "pruner", "it is called early_terminate here"),
    ForeignWord("", "scheduler", "it is called early_terminate here"),
    ForeignWord("", "search_space", "it is called parameters here"),
    ForeignWord("", "param_space", "it is called parameters here"),
    ForeignWord("early_terminate", "min_iter", "it is called min_resource here, with type: hyperband"),
    ForeignWord("early_terminate", "grace_period", "it is called min_resource here, with type: successive_halving"),
    ForeignWord("early_terminate", "eta", "it is called reduction_factor here, with type: hyperband"),
    ForeignWord("early_terminate", "max_iter", "leave it out: train.qat.epochs is the end"),
    ForeignWord("early_terminate", "max_t", "leave it out: train.qat.epochs is the end"),
    ForeignWord("early_terminate", "s", "leave it out: the brackets follow from min_resource and reduction_factor"),
    ForeignWord("early_terminate", "strict", "leave it out"),
    ForeignWord("parameters", "probabilities", "leave it out: all values are equally likely"),
    ForeignWord("parameters", "q", "leave it out, and list values in place of the range"),
    ForeignWord("method", "bayes", "W&B's bayes is tpe or gp here"),
    ForeignWord("method", "bayesian", "Bayesian search is tpe or gp here"),
    ForeignWord("type", "asha", "it is called successive_halving here"),
    ForeignWord("distribution", "log_uniform_values", "it is called log_uniform here"),
    ForeignWord("distribution", "loguniform", "it is called log_uniform here"),
    ForeignWord("distribution", "q_uniform", "list values in place of the range"),
    ForeignWord("distribution", "q_log_uniform_values", "list values in place of the range"),
    ForeignWord("distribution", "categorical", "list values and leave distribution out"),
    ForeignWord("distribution", "constant", "write value: and leave distribution out"),
)


def hint_for_key(path: KeyPath) -> str:
    """How another tool's key is said here; empty if the key is not known."""
    return _find_hint(str(path[0]) if len(path) > 1 else "", path[-1])


def hint_for_value(path: KeyPath, value: object) -> str:
    """The message for another tool's value of a key, with the way to say it here; empty if the value is not known."""
    if path[:2] == ("parameters", "weight_bits") and isinstance(value, list):
        return f"{format_value(value)} is not a whole number (bits of each layer are the axis layer_bits)"
    hint = _find_hint(str(path[-1]) if path else "", value)
    return f"unknown {format_value(value)} ({hint})" if hint else ""


def _find_hint(home: str, word: object) -> str:
    return next((found.hint for found in FOREIGN_WORDS if (found.home, found.word) == (home, word)), "")
