"""Suites: a module each; what one has to offer is in perf.suite."""
