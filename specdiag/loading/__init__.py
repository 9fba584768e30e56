"""From bytes to weights, from a name to a network, from a data spec to samples; no file is executed."""
