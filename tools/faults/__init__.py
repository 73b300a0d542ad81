"""What goes wrong around moored, on purpose. ``command`` is the host's side, everything else runs in the sandbox.

Modules, from below: ``world`` (what is expected, and what the system says), ``alice`` (a user beside root),
``clients`` (who register, change, stop and ask), ``checks`` (what must be true once all is quiet), ``harm`` (the kinds
of faults), ``inside`` (step by step).
"""
