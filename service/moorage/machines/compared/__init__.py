"""How each property is compared with what is in force, by concern; `table` has all of them."""
