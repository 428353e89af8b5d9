"""Test suites of other projects, run over replicas that mirror their primary."""
