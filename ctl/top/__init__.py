"""`buildctl top`: the machine, the daemon and its builds, looked at again and again.

`scene` is what is known, `choices` what the person at the keyboard wants, `picture` makes lines of the two; all three
are plain functions of data. `live` shows the lines on a `screen` and asks the daemon; `verb` reads the options and
prints where there is no screen.
"""
