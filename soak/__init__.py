"""The soak: real servers, and a few hundred clients of all kinds, for minutes. ``scripts/soak`` runs it."""
