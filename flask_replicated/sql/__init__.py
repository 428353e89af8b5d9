"""What a statement does: read, lock, write or set. No Flask here."""
