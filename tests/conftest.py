"""Tests share `oracle.py`, a hub on this machine, and the fixtures beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

FIXTURES = Path(__file__).parent / "fixtures"

from hub_fixtures import hub, hub_cache  # noqa: E402, F401
