"""Measurements that developers run and users need not install."""
