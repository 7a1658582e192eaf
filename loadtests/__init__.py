"""Load on a sidecar before a simulated provider, with thresholds: `python -m loadtests.run SCENARIO`."""
