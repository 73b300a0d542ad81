"""`io.moorage.Machine`: its words, conversions and handlers."""
