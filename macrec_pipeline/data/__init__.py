"""Stage `data`: from the files of a shop to clean interactions, a catalogue and one history a user.

`readers` gives the raw tables as found, `cleaning` what is left after quarantine and k-core, `histories` a sequence a
user, `splits` what of it is held out, `given` what exists ready-made, `checks` what must hold before anything else is
computed.
"""
