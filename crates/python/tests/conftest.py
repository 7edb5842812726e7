"""What several tests need."""

import os

# Two cores are often shared: more threads than cores make the tiny models slower, not faster.
os.environ.setdefault("OMP_NUM_THREADS", "1")
