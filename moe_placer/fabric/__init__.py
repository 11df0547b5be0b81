"""The network between nodes: its graph, and routes through it."""

from moe_placer.fabric.graph import build_fabric, kinds_of_links, link_kind, link_name, node_name
from moe_placer.fabric.routes import Routes, compile_routes

__all__ = ["Routes", "build_fabric", "compile_routes", "kinds_of_links", "link_kind", "link_name", "node_name"]
