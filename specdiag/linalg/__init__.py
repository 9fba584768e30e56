"""Pure numbers: linear operators and their spectra. No model, no files, no logging."""
