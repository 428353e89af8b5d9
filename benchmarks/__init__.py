"""What routing costs, each figure beside its floor or its peer of the same run."""
