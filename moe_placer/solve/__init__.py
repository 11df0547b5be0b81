"""One run: from an instance through a solver to a verified placement."""
