"""Demonstrations: one form in memory and on disk (`dataset`), one file per way to get them."""
