"""Replay searches on learning curves: `python jobs/replay.py --curves DIR --method default --json rows.json`.

Nothing is trained: a virtual clock takes times and losses from the curves. Exit codes: 0 done,
2 a setting is wrong, 3 the folder is.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.benchmarks.replay.cli import main

if __name__ == "__main__":
    main()
