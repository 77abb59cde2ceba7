"""kgtrace beside its peers, on one layer of one trained model, in one run.

======================  ================================================================================================
``problem``             the layer as a problem that any library can read: inputs, loss, training and test triples
``protocol``            what a runner reads and writes; torch and numpy only, for it runs in every peer's environment
``runners``             one module a library: how it embeds, stores and searches
``environments``        a virtual environment for each peer
``methods``             which rows there are, and how many triples each can afford
``report``              recall, tables and plots, from the results
======================  ================================================================================================
"""
