"""Many replicas: probed in the background, discovered, added and removed."""
