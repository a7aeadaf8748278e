"""hisac_rec: training and evaluating rankers with ultra-long user histories.

The package reads top-down along the way of the data:
``data`` -> ``semantic`` -> ``ranker`` (sharded embeddings) -> ``methods`` (history
methods, HiSAC among them) -> ``train`` -> ``evaluation``; ``planning`` decides where
the tables live and ``cli`` is what people type.
"""

__version__ = "0.1.0"
