"""What the operating system gives and takes: forked processes, sockets, threads."""
