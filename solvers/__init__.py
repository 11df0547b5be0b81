"""Solvers: one method, one file. `moe_placer.solve.registry` names them."""
