"""Many checkpoints through many analyzers: the plan, who computes it, and what came of it."""
