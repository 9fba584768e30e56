"""One file per training method; each exports METHOD. Found by listing this folder."""
