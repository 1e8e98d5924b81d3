"""Benchmarks, one module for each performance claim; `fill`, `measure` and `service` are shared."""
