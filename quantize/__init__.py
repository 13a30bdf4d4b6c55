"""Calibration, INT8 post-training quantisation and export to each engine, with parity reports; writes bundles."""
