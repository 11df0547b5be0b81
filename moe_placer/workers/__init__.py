"""Worker processes, and the cores and memory that they may use."""

from moe_placer.workers.machine import available_memory, usable_cores
from moe_placer.workers.pool import Workers, asked_to_stop, count_deaths, run_each

__all__ = ["Workers", "asked_to_stop", "available_memory", "count_deaths", "run_each", "usable_cores"]
