"""Playbooks against real engines and daemons."""
