"""What one server is and says: fit or not, read-only, how long it may take."""
