"""Instances with the best placement and bound known of each, every figure re-derived from files."""

from moe_placer.library.catalog import Library, open_library
from moe_placer.library.recheck import Recheck, recheck_record
from moe_placer.library.record import Record
from moe_placer.library.submit import Submission, submit_placement

__all__ = ["Library", "Recheck", "Record", "Submission", "open_library", "recheck_record", "submit_placement"]
