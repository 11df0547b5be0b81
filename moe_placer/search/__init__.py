"""Local search: exact moves, neighbourhoods, and the choice of replicas."""
