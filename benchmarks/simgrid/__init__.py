"""Checks `moe_placer.schedule.network` against the flow-level network simulator SimGrid.

For developers: ``python -m benchmarks.simgrid reports/2026-11-24-simgrid``; needs the extra ``simgrid``.
"""
