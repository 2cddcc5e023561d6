"""Stage `data`: from the source files to clean interactions, a catalogue and one history per user.

`readers` turn the files of a data set into raw tables. `cleaning` moves unusable rows to quarantine and applies the
k-core. `histories` builds one sequence per user and decides what is held out. `table_checks` verifies the results
before anything is computed from them. `images` fetches the images of the items, `demo` generates a small shop, and
`new_data` detects changed source files.
"""
