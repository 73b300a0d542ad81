"""The interfaces that are served: what goes over the wire, and thin handlers."""
