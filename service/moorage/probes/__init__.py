"""Programs that run by their path, alone, inside somebody else's namespaces; none of them imports moorage."""
