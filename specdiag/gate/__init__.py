"""Rules to verdicts: does a number pass its limit, fail it, or not show enough to tell? Torch-free."""
