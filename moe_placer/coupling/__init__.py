"""What couples layers: one objective over all of them, and memory that they share."""
