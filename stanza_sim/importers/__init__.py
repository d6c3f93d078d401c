"""Measurements in formats of other programs, read and made into what predictions use. One module a format."""
