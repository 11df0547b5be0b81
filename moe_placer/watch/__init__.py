"""Watches a folder of recordings, and replans when that pays: unattended, and safe to kill at any moment."""
