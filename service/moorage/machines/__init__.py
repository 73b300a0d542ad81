"""Machines: what one is, which there are, what becomes of them."""
