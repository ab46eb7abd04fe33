"""Checks how a user's model answers: each row by itself, without changing its input, without draws of its own."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from qdtune import plugins
from qdtune.plugins import PluginError
from qdtune.training.step import check_outputs

TRIED_COUNTS = (1, 2, 3)  # rows of a forward pass: alone, even, odd


@torch.no_grad()
def check_answers(factory: str, model: nn.Module, x: Tensor, outputs: int) -> None:
    """Checks the outputs of one, two, three and all rows, and that those of a row do not depend on the others.

    Args:
        factory: that built the model.
        model: the answers of its evaluation are checked.
        x: (N, I), normalised.
        outputs: O.

    Raises:
        PluginError: the outputs are wrong.
    """
    check_input_is_kept(factory, model.eval(), x)
    together: Tensor | None = None
    for count in (len(x), *TRIED_COUNTS):
        with plugins.explain_errors(f"{factory} builds a model that cannot be called"):
            answer = model(x[:count])
        try:
            found = check_outputs(answer, len(x[:count]), outputs)
        except ValueError as error:
            raise PluginError(f"{factory}: {error}") from None
        if together is None:
            together = found
        elif not are_close(together[:count], found):
            raise PluginError(
                f"{factory} builds a model that answers a row otherwise when it comes with other rows, or again: "
                "in evaluation each row must be answered by itself, and always in the same way"
            )


@torch.no_grad()
def check_input_is_kept(factory: str, model: nn.Module, x: Tensor) -> None:
    """Checks that a forward pass leaves its input (N, I) as it is: other trials read it, and so may the loss.

    Raises:
        PluginError: it writes to it, even if the values happen to stay the same.
    """
    given = x.clone()
    before = given._version  # which torch counts up whenever the tensor, or a view of it, is written to
    with suppress(Exception):  # told by the checks that follow
        model(given)
    if given._version != before or not torch.equal(given, x):
        raise PluginError(
            f"{factory} builds a model that changes its input in place, such as with clamp_, x[...] = or a first "
            "layer with inplace=True: write to a copy, or use the function that returns a new tensor"
        )


@torch.no_grad()
def check_draws(factory: str, model: nn.Module, x: Tensor) -> None:
    """Checks that a forward pass (N, I) in training draws nothing from PyTorch's generator, which knows no replicas.

    Raises:
        PluginError: it does.
    """
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        with suppress(Exception):  # told by the checks that follow
            model(x)
        if not torch.equal(before, torch.get_rng_state()):
            raise PluginError(
                f"{factory} builds a model that draws random numbers in its forward pass, such as with torch.rand or "
                "nn.functional.dropout: replicas that are trained together would share them; use nn.Dropout, "
                "nn.Dropout1d, nn.Dropout2d or nn.AlphaDropout, which draw for each replica"
            )


def are_close(a: Tensor, b: Tensor) -> bool:
    """Whether outputs are the same but for rounding."""
    size = float(a.nan_to_num().abs().max())
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(size, 1.0), equal_nan=True)
