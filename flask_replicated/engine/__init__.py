"""How a statement reaches its server: session, engine, connection, transaction."""
