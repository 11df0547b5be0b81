"""What couples layers: one objective over all of them."""
