"""The ideas behind the library, each in its shortest form: plain Python, no speed, no options.

Every module is a definition to read in one sitting and the oracle of a fast implementation
elsewhere: the tests compare the two. Nothing here is used by the rest of the library.
"""
