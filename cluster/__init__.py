"""Where it runs: tasks, gangs of workers and search trials on Ray. Knows nothing of models."""
