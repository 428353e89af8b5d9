"""What a client must see: log positions, tokens, stores, guarantees."""
