"""``hisac-rec`` on one core: that of its rank, with all its threads, the loader's among them."""

from __future__ import annotations

import os

from hisac_rec.cli.app import main

if __name__ == "__main__":
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("LOCAL_RANK", "0")) % len(cores)]})
    main()
