"""The network between nodes: its graph, and routes through it."""

from moe_placer.fabric.graph import build_fabric, kinds_of_links, link_kind, link_name, node_name
from moe_placer.fabric.link_time import COST, dispatch_us, link_bandwidths, link_us, link_words, token_cost
from moe_placer.fabric.routes import Routes, compile_routes

__all__ = [
    "COST",
    "Routes",
    "build_fabric",
    "compile_routes",
    "dispatch_us",
    "kinds_of_links",
    "link_bandwidths",
    "link_kind",
    "link_name",
    "link_us",
    "link_words",
    "node_name",
    "token_cost",
]
