"""Scores of edits and attacks on them."""
