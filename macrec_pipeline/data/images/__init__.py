"""Image fetching: the addresses in a catalogue become image files in the data folder."""
