"""Decisions about a deployment, from recomputed figures; may this plan be deployed, and does placing pay at all."""
