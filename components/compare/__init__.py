"""The Compare tab: three models answer one prompt, with the costs of each model."""
