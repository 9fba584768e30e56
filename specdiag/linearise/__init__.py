"""Forward products J v at the cost of a forward pass, with every nonlinearity frozen at x."""

from specdiag.linearise.passes import Linearised

__all__ = ["Linearised"]
