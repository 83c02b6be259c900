"""What is said of policies: what happened, what it cost, how sure it is, and how it looks."""
