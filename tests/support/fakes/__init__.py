"""A kernel and a service manager in memory: what the core of moored asks for, and does not see through.

Both pass the batteries that the real ones pass (`manager_battery`, `hierarchy_battery`): that is what makes a test
that uses them worth anything.
"""
