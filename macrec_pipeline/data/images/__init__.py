"""Fetching images: the addresses in a catalogue become image files in the data folder.

`addresses` decides which images are needed and where they belong, `downloads` loads one image, `public_hosts` refuses
private networks, and `fetch` loads all images and stores them.
"""
