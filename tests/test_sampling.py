"""Random numbers depend on seed, purpose and sample, and on nothing else."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdiag.sampling import Batch, Draws, choose


def test_rows_do_not_depend_on_the_batch() -> None:
    draws = Draws(7)
    together = draws.normal("start", [5, 0, 9], (3, 2))
    for row, index in enumerate((5, 0, 9)):
        assert np.array_equal(together[row], draws.normal("start", [index], (3, 2))[0])


def test_seed_purpose_and_index_matter() -> None:
    base = Draws(0).normal("a", [0], (4,))
    for other in (
        Draws(1).normal("a", [0], (4,)),
        Draws(0).normal("b", [0], (4,)),
        Draws(0).normal("a", [1], (4,)),
    ):
        assert not np.array_equal(base, other)
    assert not np.array_equal(Draws(0).shared_normal("a", (4,)), base[0])


def test_known_values_stay() -> None:
    """A change here would change every stored result."""
    assert np.allclose(Draws(0).normal("start", [3], (2,)), KNOWN, rtol=0, atol=0)


KNOWN = np.array([[-0.22851653197448407, 0.28066461137602505]])


def test_streams_are_standard_normal_and_independent() -> None:
    rows = Draws(0).normal("check", range(400), (50,))
    assert abs(rows.mean()) < 4 / np.sqrt(rows.size)
    assert abs(rows.var() - 1) < 4 * np.sqrt(2 / rows.size)
    correlation = np.corrcoef(rows[:-1].ravel(), rows[1:].ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(rows.size)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 5))
def test_fewer_samples_are_a_subset(small: int, large: int, seed: int) -> None:
    small, large = sorted((small, large))
    few, many = choose(300, small, seed), choose(300, large, seed)
    assert len(few) == small
    assert set(few) <= set(many)
    assert np.array_equal(few, np.sort(few))


def test_padding_repeats_the_last_sample() -> None:
    batch = Batch(
        torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 2]), np.array([4, 8, 9]), "test", Draws(0)
    )
    padded = batch.padded(8)
    assert len(padded) == 8
    assert padded.count == 3
    assert torch.equal(padded.x[3:], batch.x[-1:].expand(5, 2))
    assert padded.index.tolist() == [4, 8, 9, 9, 9, 9, 9, 9]
    assert batch.padded(3) is batch
