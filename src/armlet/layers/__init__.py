"""Parts that networks are made of; none knows a policy, a recipe or a benchmark."""
