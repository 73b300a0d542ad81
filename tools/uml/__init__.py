"""What a sandbox of the kind `uml` adds to tools/sandbox: `init` starts it, `commands` runs commands in it.

`init` and one half of `commands` run inside, on the standard library alone; the checkout is there as /moorage.
"""
