"""The program that does what is asked of it inside machines: `moorage.probes.fork_server`, run by its path.

It is as short as that because Python compiles what it runs by a path each time, but keeps what is imported.
"""

import os
import sys

if __name__ == "__main__":  # it finds nothing of this package by itself
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from moorage.probes.fork_server import main

if __name__ == "__main__":
    main()
