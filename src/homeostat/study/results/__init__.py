"""From trials to effects, a recommendation and a sentence: pure functions of the ledger."""
