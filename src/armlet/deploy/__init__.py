"""What a trained policy becomes on a robot: a graph in another runtime, measured before it is
written. Knows policies, worlds and runtimes; knows no recipe."""
