"""Plans as the files that engines load: one module for each format, and what all must hold."""
