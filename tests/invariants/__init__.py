"""Fourteen things that must hold of the bill, whatever happens; and for each a mistake that the checks must find."""
