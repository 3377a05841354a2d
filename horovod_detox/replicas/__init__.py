"""What ranks hold alike: its digests, the cause of a difference, and healing."""
