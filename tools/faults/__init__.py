"""Faults injected around moored. ``command`` runs on the host, everything else in the sandbox.

Modules, from below: ``world`` (expectations, and what the system reports), ``alice`` (a user beside root), ``calling``
(calls and leases), ``helpers`` and ``clients`` (what clients do), ``checks`` (what must be true once all is quiet),
``harm`` (the kinds of faults), ``inside`` (step by step).
"""
