"""The HTTP API: `api/x.py` holds the routes of `x.py`."""
