"""``hisac-rec init-dataset``: from files nobody has described to a data-set definition.

The way: :mod:`files` finds out how a file is read, :mod:`facts` measures its columns,
:mod:`moments`, :mod:`time_column`, :mod:`roles`, :mod:`labels` and :mod:`sides` say what each
column could be and why, :mod:`events` and :mod:`splits` choose among that, :mod:`proposal` holds
what was chosen, :mod:`writing` makes the TOML, :mod:`figures` and :mod:`concerns` look at the
events that the definition gives, and :mod:`check` prepares a sample of them. :mod:`look` walks the
whole way.
"""
