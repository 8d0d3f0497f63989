"""Stands where the engine's package would be, so that its own argv starts the stand-in. Tests only."""
