from __future__ import annotations

import sys
from pathlib import Path

# `model_nets` is imported by path, as a user's factories are.
sys.path.append(str(Path(__file__).parent))
