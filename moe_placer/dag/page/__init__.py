"""A page for a large drawing: search, zoom and details, in one file that needs no network."""

from moe_placer.dag.page.viewer_page import to_page

__all__ = ["to_page"]
