"""Long rollouts beside held-out MD: populations, rates and geometry with intervals."""
