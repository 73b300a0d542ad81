"""Varlink on trio (https://varlink.org): knows nothing of machines."""
