"""Fitted models written down in other languages."""
