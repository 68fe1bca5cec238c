"""The ledger in SQLite, the only state that the processes of a study share; who may write into it."""
