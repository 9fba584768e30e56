"""One file per analyzer; each exports ANALYZER. Found by listing this folder."""
