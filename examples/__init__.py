"""Runnable examples, and the database servers they and the tests use."""
