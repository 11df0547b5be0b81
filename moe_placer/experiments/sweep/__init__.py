"""Sweeps of a simulated step over batches, contexts, fabrics and placements, and where their curves cross."""
