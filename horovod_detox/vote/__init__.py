"""Who is in which group, what a vote compares, who won and who is to be named."""
