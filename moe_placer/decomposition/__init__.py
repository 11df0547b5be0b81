"""What couples layers: the aggregate objective, and memory that layers share."""
