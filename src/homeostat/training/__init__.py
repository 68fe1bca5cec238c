"""Tasks, recipes, models and the loop that fits one recipe to one task with one seed."""
