"""Stored results as one JSON document: what made the numbers, and the metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from specdiag.store import FORMAT_VERSION, json_safe, provenance

if TYPE_CHECKING:
    import xarray


def document(datasets: Iterable[xarray.Dataset]) -> dict[str, Any]:
    """`{"format_version": 1, "results": [provenance with metrics, ...]}`, in the order given.

    Strict JSON: NaN and infinities are the texts "nan", "inf" and "-inf". The arrays stay in the results
    file. Raises ResultsError for a dataset without provenance.
    """
    return {
        "format_version": FORMAT_VERSION,
        "results": [json_safe(provenance(dataset)) for dataset in datasets],
    }
