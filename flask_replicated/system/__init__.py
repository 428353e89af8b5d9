"""What lies below all else: processes, sockets, threads, patterns, log lines."""
