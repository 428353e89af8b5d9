"""Where the reads of a request go, and why; what the request remembers for it."""
