"""Turns ``app.config`` into frozen settings, and raises every configuration error."""
