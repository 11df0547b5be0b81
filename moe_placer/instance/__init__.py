"""The instance file: its fields, how it is read, and what its sizes come to in bytes."""

from moe_placer.instance.instance import Instance
from moe_placer.instance.reader import load_instance, make_instance

__all__ = ["Instance", "load_instance", "make_instance"]
