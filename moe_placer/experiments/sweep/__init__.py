"""The same step over and over: batches, contexts, fabrics and placements side by side, and where they cross."""
