"""One file per attack; each exports ATTACK. Found by listing this folder."""
