"""A policy behind a socket, for robots and for harnesses of others: `armlet serve`."""
