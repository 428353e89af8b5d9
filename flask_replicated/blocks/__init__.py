"""Blocks and decorators of programs: which are open, who has opened them."""
