"""The papers' claims, tested on models that the toolkit trains itself: one file per paper."""
