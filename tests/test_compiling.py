"""`--compile on` gives the same numbers, and falls back with a reason where there is no compiler."""

from __future__ import annotations

import pytest
import torch
from nets import small_cnn
from torch import nn

from specdiag import compiling
from specdiag.jacobian.rows import by_autograd
from specdiag.model import Model

X = torch.rand(8, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_same_rows_and_the_same_marks() -> None:
    plain, fast = (Model(small_cnn(), (2, 8, 8)) for _ in range(2))
    reason = fast.compile(8)
    if reason:
        pytest.skip(reason)
    a, b = by_autograd(plain, plain.to_input(X)), by_autograd(fast, fast.to_input(X))
    clear = a.near_kink == 0
    assert float((a.matrix - b.matrix)[clear].abs().max()) <= 1e-5 * float(a.matrix.abs().max())
    assert torch.equal(a.near_kink, b.near_kink)
    assert torch.allclose(fast.logits(fast.to_input(X[:3])), plain.logits(plain.to_input(X[:3])))


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(compiling.torch, "compile", missing)
    model = Model(small_cnn(), (2, 8, 8))
    reason = model.compile(8)
    assert reason == "Not compiled (RuntimeError: No working C++ compiler found); running uncompiled."
    assert not model.is_compiled
    assert isinstance(model.fast, nn.Module)
    assert by_autograd(model, model.to_input(X)).matrix.shape == (8, 4, 128)
