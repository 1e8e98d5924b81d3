"""How fast Tocsin is: each module is a benchmark to run with `python -m bench.<name>`, but for `measure` and `fill`."""
