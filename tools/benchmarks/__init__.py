"""moored and its peers, measured side by side in one sandbox in one run.

`command` runs on the host, `inside` in the sandbox; `rows` has the quantities and their targets, and needs neither.
"""
