"""What the frontends of all frameworks share."""
