"""Faces for the operators of an application: command line, control place, page."""
