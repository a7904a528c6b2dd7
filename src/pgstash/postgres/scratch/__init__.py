"""Scratch for drills: a throwaway server or a scratch database, and checks of the result."""
