"""Comparisons of properties with the values in force, by concern; `table` has all of them."""
