"""Solvers: one method, one file. `moe_placer.registry` names them."""
