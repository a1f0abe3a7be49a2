"""Data sets that lie on the server: found below one folder; no file can run code."""

from .calls import StoredCall, StoredRows
from .root import DataRoot
from .sets import DataSet
from .worker import DataWorker, shape_of

__all__ = ["DataRoot", "DataSet", "DataWorker", "StoredCall", "StoredRows", "shape_of"]
