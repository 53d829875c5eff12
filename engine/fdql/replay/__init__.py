"""Stages 3 and 4 of 8, `ingest` and `sample`: rows in lanes, priorities in a tree, batches out.

Reading order: sum_tree (priorities), lanes (rows), nstep (windows over rows), statistics, batch,
replay (all of them together), state (for checkpoints). Everything here is private memory of one
process and has one owner thread; the Numba kernels release the GIL, so that thread runs beside the
learner.
"""
