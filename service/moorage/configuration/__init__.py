"""The configuration of moored: its options, the files that set them, and what is in force."""
