"""How fast the server is, next to others and to the machine: see README.md."""
