"""Wire formats without IO: HTTP/1.1, JSON bodies, server-sent events, content codings."""
