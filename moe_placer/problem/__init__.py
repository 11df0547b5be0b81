"""The placement problem as arrays: what solvers see instead of files."""
