"""Real systemd hosts with SSH and a nested Docker engine, on one machine."""
