"""Worker processes, the executors that run them, and the cores and memory that they may use."""

from moe_placer.workers.engine import Engine, keep_executor
from moe_placer.workers.engines import engine_names, find_engine, local_processes, local_threads, stated_workers
from moe_placer.workers.machine import available_memory, usable_cores
from moe_placer.workers.pool import Workers, count_deaths, run_each
from moe_placer.workers.processes import asked_to_stop

__all__ = [
    "Engine",
    "Workers",
    "asked_to_stop",
    "available_memory",
    "count_deaths",
    "engine_names",
    "find_engine",
    "keep_executor",
    "local_processes",
    "local_threads",
    "run_each",
    "stated_workers",
    "usable_cores",
]
