"""Tests compute with small tensors: one thread is faster than two that wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
