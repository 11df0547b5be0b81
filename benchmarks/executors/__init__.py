"""What executors cost beside the solves that they run."""
