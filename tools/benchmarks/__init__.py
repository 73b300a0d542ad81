"""moored and its peers, measured side by side in one sandbox in one run.

`command` is what runs on the host, `inside` what runs in the sandbox; `rows` holds the quantities and their targets
and needs neither.
"""
