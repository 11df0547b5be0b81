"""Rank-to-host orders for launchers, so that GPU g of a plan is rank g."""
