"""What systemd 262 has for each type of unit, as DescribeProperties returns it, for tests that have no systemd."""

import json
from collections.abc import Mapping
from pathlib import Path

TYPES: Mapping[str, Mapping[str, str]] = json.loads(
    Path(__file__).with_name("properties-262.json").read_text()
)
"""D-Bus signatures of properties, by type of unit."""
