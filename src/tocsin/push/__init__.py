"""Pushes to phones and browsers: deliveries, the dispatcher, and the results of providers."""
