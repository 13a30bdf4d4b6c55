"""The scripts behind every number that this project publishes; run each as `python -m benchmarks.NAME --help`."""
