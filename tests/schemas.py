"""The schemas of a run that is judged by accuracy, as most tests have them."""

from qdtune.store.columns import history_schema, pareto_schema, trials_schema

TRIALS, HISTORY, PARETO = trials_schema(), history_schema(), pareto_schema()
