"""Why a part of the report cannot be measured here."""

__all__ = ["LeftOutError"]


class LeftOutError(Exception):
    """A part needs what this machine or user has not; its rows stay as they are."""
