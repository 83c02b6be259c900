"""A world and a policy in a closed loop. The only place in which a robot's world and a policy
meet."""
