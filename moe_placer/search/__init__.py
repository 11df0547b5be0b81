"""Local search: exact moves, and the choice of replicas."""
