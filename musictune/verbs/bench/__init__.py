"""Measure the bundled base and the tuning methods on concepts it has never heard."""
