"""From a session to an engine that stands for several, and on to a transaction."""
