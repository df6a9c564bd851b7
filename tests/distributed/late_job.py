"""The runs of tests.distributed.runs, with a rank 0 that is late: the other one first finds what the dead have left."""

import os
import sys
import time

from tests.distributed.runs import main

if __name__ == "__main__":
    if os.environ["RANK"] == "0":
        time.sleep(1.0)
    main(sys.argv[1:])
