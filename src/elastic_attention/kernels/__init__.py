"""Attention kernels. They know rows and patterns, never the router."""
