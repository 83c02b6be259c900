"""Policies that answer over a socket: of whatever framework, known by their answers alone."""
