"""The guide's study under `torchrun`: every rank writes the table of trials that it sees into a folder."""

import json
import os
import sys
from pathlib import Path

from tests.docs.guide_optuna import run_guide, table

if __name__ == "__main__":
    Path(sys.argv[1], f"rank{os.environ['RANK']}").write_text(json.dumps(table(run_guide())), encoding="utf-8")
