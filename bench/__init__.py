"""How fast Tocsin is, each claim in a module of its own; `fill`, `measure` and `service` are what they share."""
