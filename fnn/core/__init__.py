"""What every network, optimizer and run stands on; it imports none of them.

To read it in one sitting: `layer` and `compose` are the heart, `declarations` says what an array of
a network is, `params` draws first values, `errors` and `checks` say what is wrong.
"""
