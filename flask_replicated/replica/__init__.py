"""One server: whether it may be used, its connections, its errors."""
