"""Camera, broker and server in one process, with clock, disk and network simulated: F13 of the list of faults.

Everything that decides is the product's own: pipeline's way out, outbox, spool (on real SQLite), lanes, publisher,
ledger; ingest, engine, worker, join, H.264 decode, store. What is simulated stands behind their seams: time and
processes (world.py), disks (disk.py), lines and a broker (broker.py). All chance comes from one seed: a run replays.
"""
