"""The Jacobian of a Model at a batch of points: as a matrix, by regression, by differences, as an operator."""
