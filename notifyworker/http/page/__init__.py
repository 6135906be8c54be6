"""The page for people: drawn on the server, from snapshots that only read, and alive over one stream."""
