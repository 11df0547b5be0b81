"""The network between nodes: its graph, and routes through it."""

from moe_placer.fabric.graph import build_fabric, kinds_of_links, link_kind, link_name, node_name
from moe_placer.fabric.link_time import COST, dispatch_us, link_bandwidths, link_us, link_words, token_cost, wire_us
from moe_placer.fabric.nics import Receivers, is_nic, kinds_in, nic_bandwidths, nics_among, node_routes, receivers
from moe_placer.fabric.routes import Routes, compile_routes, routes_between

__all__ = [
    "COST",
    "Receivers",
    "Routes",
    "build_fabric",
    "compile_routes",
    "dispatch_us",
    "is_nic",
    "kinds_in",
    "kinds_of_links",
    "link_bandwidths",
    "link_kind",
    "link_name",
    "link_us",
    "link_words",
    "nic_bandwidths",
    "nics_among",
    "node_name",
    "node_routes",
    "receivers",
    "routes_between",
    "token_cost",
    "wire_us",
]
