"""Benchmarks: one module per question, always compared with a reference in the same run."""
