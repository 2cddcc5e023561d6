"""Histories: clean interactions become one time-ordered sequence per user, split into training, validation and test."""
