"""Reports: all made from stored results, never from a model. No torch."""
