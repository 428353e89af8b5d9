"""Many replicas in the background: probed, discovered, coming and going."""
