"""HTTP/2 to push services, and HTTPS to identity providers."""
