"""The HTTP doors: `api/x.py` is the door of `x.py`."""
