"""Tests share `oracle.py` and the fixtures beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

FIXTURES = Path(__file__).parent / "fixtures"
